"""Reloading, for `--dev`: the server restarts when code, settings or a prompt changes."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from uvicorn.supervisors.statreload import StatReload

from app.config import settings_file
from app.http.signals import end_signals

WATCHED = frozenset({".jinja", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"})
"""Endings of the files whose changes count."""


class Reload(StatReload):
    """uvicorn's reloader for more than Python files, with another signal handler.

    uvicorn's own takes a lock, so a second signal makes it hang. Ctrl-C brings two: one from the terminal, and one that
    `uv run` passes on.

    Args:
        config: the server's; its `reload_dirs` are watched.
        target: serves, in a process of its own.
        sockets: where it listens.
    """

    _asked_to_end = False

    def startup(self) -> None:
        """Start the server, and handle SIGHUP too."""
        for number in end_signals():
            signal.signal(number, self.signal_handler)
        super().startup()

    def iter_py_files(self) -> Iterator[Path]:
        """Yield every file that is watched: those of the project, and the settings file, which may be elsewhere."""
        yield settings_file()
        for folder in self.config.reload_dirs:
            yield from (path for path in folder.rglob("*") if path.suffix in WATCHED)

    def signal_handler(self, sig: int, frame: FrameType | None) -> None:
        """Remember that the process shall end."""
        self._asked_to_end = True

    def pause(self) -> None:
        """Wait until it is time to look for changed files again."""
        time.sleep(self.config.reload_delay)
        if self._asked_to_end:
            raise StopIteration
