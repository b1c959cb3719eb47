"""Serves the application: the sockets, the logs and the signals of one process, or of several workers."""

import contextlib
import errno
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from app.config import Settings, SettingsError
from app.http.signals import END_SIGNALS, end_signals
from app.network import with_mapped
from app.telemetry.logs import capture_output, configure_logs

SERVER_BACKSTOP = 1
"""Seconds that uvicorn waits for open connections after our own graceful shutdown."""
METRICS_BYTES = 8_000_000
"""Room on the disk that the metrics of one worker may need."""

START_EVERY = 5
"""Seconds from a worker's start to that of the next in its place, at least: it may die again and again."""

log = structlog.get_logger("app.serving")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a host. `::` takes connections of both families.

    Args:
        host: an address, or a name.
        port: 0 takes one that is free.

    Raises:
        OSError: the host has no address on this machine, or the port is in use.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in host:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def serve(settings: Settings, listener: socket.socket) -> int:
    """Serve until a signal ends it; return the exit code.

    Args:
        settings: of this process. Others that it starts load theirs from the same sources.
        listener: where to listen.

    Raises:
        SettingsError: there is no room for the metrics of several workers.
    """
    _set_up_logs(settings)
    config = uvicorn.Config(
        "app.main:app",
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        http="app.http.server_protocol:ServerProtocol",
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        lifespan="on",
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=with_mapped(settings.trusted_proxies) or None,
        timeout_graceful_shutdown=SERVER_BACKSTOP,
        reload=settings.dev,
        reload_dirs=[str(Path(__file__).parent.parent)] if settings.dev else None,
    )
    if settings.dev or settings.workers > 1:
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # the workers tell what they do
    if settings.dev:
        from app.http.reloading import Reload

        Reload(config, partial(serve_in_child, Server(config), settings), [listener]).run()
        return 0
    if settings.workers > 1:
        return Supervisor(config, listener, settings).serve()
    config.load_app()
    server = Server(config)
    with contextlib.suppress(SystemExit):  # the start has failed; uvicorn's own exit code is another
        server.run([listener])
    return 0 if server.started else 1


class Server(uvicorn.Server):
    """uvicorn's server. SIGHUP ends it too, and no signal is raised again when it has shut down."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals while it runs; ignore them afterwards."""
        numbers = end_signals()
        for number in numbers:
            signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)


def serve_in_child(
    server: Server, settings: Settings, sockets: list[socket.socket] | None = None, *threads: Callable[[], None]
) -> None:
    """Serve in a process that a supervisor has started, until that ends, however it does.

    Args:
        server: serves.
        settings: this service's.
        sockets: where to listen.
        *threads: what to do beside that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a terminal sends it to all; without KeyboardInterrupt's traceback
    _set_up_logs(settings)
    for work in (_end_with_supervisor, *threads):
        threading.Thread(target=work, daemon=True).start()
    try:
        server.config.load_app()  # before the server handles signals: during imports, SIGTERM ends the process
        server.run(sockets)
    except Exception as error:
        sys.excepthook(*sys.exc_info())  # else multiprocessing writes it, in lines that are no log
        raise SystemExit(1 if server.started else STARTUP_FAILURE) from error


def _end_with_supervisor() -> None:
    if supervisor := multiprocessing.parent_process():
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)


class Worker(Process):
    """One of several processes that serve, which answers the supervisor's pings."""

    settings: Settings
    started_at: float
    has_served = False

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve in this process."""
        self._server = server = Server(self.config)
        serve_in_child(server, self.settings, sockets, self.always_pong)


class Supervisor(Multiprocess):
    """uvicorn's supervisor. It gives up where a worker can't start, and logs each death of a worker in one line.

    Args:
        config: the server's.
        listener: where to listen.
        settings: this service's.
    """

    processes: list[Worker]  # type: ignore[assignment]

    def __init__(self, config: uvicorn.Config, listener: socket.socket, settings: Settings) -> None:
        handled = end_signals()
        super().__init__(config, [listener])
        for number in set(END_SIGNALS).difference(handled):
            signal.signal(number, signal.SIG_IGN)
        self._settings = settings
        self._exit_code = 0
        self._has_served = False

    def serve(self) -> int:
        """Serve until a signal ends it, with a folder for metrics; return the exit code."""
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="metrics-"))
                if shutil.disk_usage(folder).free < METRICS_BYTES * self.processes_num:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise SettingsError(f"the metrics of several workers need a folder: {error.strerror}") from None
            # Set before prometheus-client is imported, by a worker: it is read only then.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            self.run()
        return self._exit_code

    def init_processes(self) -> None:
        """Start one worker, and the others when it serves, so that a start that can't work is told once."""
        self.processes.append(self._start())
        while not self.should_exit.is_set() and not self.processes[0].is_ready(0.2):
            self.handle_signals()
            if not self.processes[0].process.is_alive():
                self._replace(0)
            time.sleep(0.05)
        self._has_served = self.processes[0].has_served = not self.should_exit.is_set()
        while not self.should_exit.is_set() and len(self.processes) < self.processes_num:
            self.processes.append(self._start())

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died, or that answer no ping."""
        seconds = self.config.timeout_worker_healthcheck
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if not worker.is_alive(seconds):
                self._replace(index)
            elif not worker.has_served:
                worker.has_served = worker.is_ready(seconds)

    def handle_hup(self) -> None:
        """End, as every other server does; uvicorn's own would restart the workers."""
        self.should_exit.set()

    def handle_ttin(self) -> None:
        """Start another worker, of ours."""
        self.processes_num += 1
        self.processes.append(self._start())

    def _start(self) -> Worker:
        folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        if not folder.is_dir():
            log.error("the folder of metrics was gone and is made again", folder=str(folder))
            folder.mkdir(parents=True)
        worker = Worker(self.config, self.sockets)
        worker.settings = self._settings
        worker.started_at = time.monotonic()
        worker.start()
        return worker

    def _replace(self, index: int) -> None:
        worker = self.processes[index]
        worker.kill()
        worker.join()
        code = worker.exitcode or 0
        gives_up = code > 0 and not (self._has_served and (worker.has_served or code != STARTUP_FAILURE))
        if not gives_up and time.monotonic() < worker.started_at + START_EVERY:
            return  # it is looked at again
        if code <= 0 or len(self.processes) > 1:  # else it has told why, as the start's only sentence
            ended_by = {"exit_code": code} if code >= 0 else {"signal": signal.Signals(-code).name}
            log.error("a worker has died", pid=worker.pid, **ended_by)
        if gives_up:
            self._exit_code = 1
            self.should_exit.set()
        else:
            self.processes[index] = self._start()


def _set_up_logs(settings: Settings) -> None:
    configure_logs(settings)
    if settings.log_format == "json":
        capture_output()
