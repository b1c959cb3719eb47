"""Reloading, for `--dev`: the server restarts when a file changes."""

import time
from types import FrameType

import uvicorn
from uvicorn.supervisors.statreload import StatReload


class Reload(StatReload):
    """uvicorn's reloader with another signal handler.

    uvicorn's own takes a lock, so a second signal makes it hang. Ctrl-C brings two: one from the terminal, and one that
    `uv run` passes on.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config, uvicorn.Server(config).run, [config.bind_socket()])
        self._asked_to_end = False

    def signal_handler(self, sig: int, frame: FrameType | None) -> None:
        """Remember that the process shall end."""
        self._asked_to_end = True

    def pause(self) -> None:
        """Wait until it is time to look for changed files again."""
        time.sleep(self.config.reload_delay)
        if self._asked_to_end:
            raise StopIteration
