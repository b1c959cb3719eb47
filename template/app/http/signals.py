"""The signals that end the service."""

import os
import signal

END_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


def end_signals() -> list[signal.Signals]:
    """Return the signals that end this process: not SIGHUP where it is ignored, as under nohup.

    The others end it in any case: a shell ignores SIGINT in what it starts in the background.
    """
    hangup = getattr(signal, "SIGHUP", None)
    return [each for each in END_SIGNALS if each != hangup or signal.getsignal(each) != signal.SIG_IGN]


def end_at_once() -> None:
    """Let each of them end this process at once, with exit code 0, until a server handles them.

    By an exit that nothing can catch: an exception could come up within any import. Without a handler, the first
    process of a container would get no signal at all.
    """
    for number in end_signals():
        signal.signal(number, lambda *_: os._exit(0))
