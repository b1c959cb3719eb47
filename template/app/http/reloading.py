"""Reloading, for `--dev`: the server restarts when a file changes."""

import signal
import time
from types import FrameType

from uvicorn.supervisors.statreload import StatReload

from app.http.signals import end_signals


class Reload(StatReload):
    """uvicorn's reloader with another signal handler.

    uvicorn's own takes a lock, so a second signal makes it hang. Ctrl-C brings two: one from the terminal, and one that
    `uv run` passes on.
    """

    _asked_to_end = False

    def startup(self) -> None:
        """Start the server, and handle SIGHUP too."""
        for number in end_signals():
            signal.signal(number, self.signal_handler)
        super().startup()

    def signal_handler(self, sig: int, frame: FrameType | None) -> None:
        """Remember that the process shall end."""
        self._asked_to_end = True

    def pause(self) -> None:
        """Wait until it is time to look for changed files again."""
        time.sleep(self.config.reload_delay)
        if self._asked_to_end:
            raise StopIteration
