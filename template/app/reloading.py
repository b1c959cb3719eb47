"""Serving with --dev: the server starts anew when a file changes."""

import time
from types import FrameType

import uvicorn
from uvicorn.supervisors.statreload import StatReload


class Reload(StatReload):
    """uvicorn's, but for its signal handler: that one takes a lock, and hangs on a second signal (Ctrl-C reaches both
    this process and `uv run`, which passes it on)."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config, uvicorn.Server(config).run, [config.bind_socket()])
        self._asked_to_end = False

    def signal_handler(self, sig: int, frame: FrameType | None) -> None:
        """Take note of a signal."""
        self._asked_to_end = True

    def pause(self) -> None:
        """Wait until files are to be looked at again."""
        time.sleep(self.config.reload_delay)
        if self._asked_to_end:
            raise StopIteration
