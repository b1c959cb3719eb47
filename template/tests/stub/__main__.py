"""Serve the stub to other processes: `python -m tests.stub --port 9000`, until interrupted."""

import argparse
import signal
import sys
import threading

from tests.stub import Behaviour, Stub

parser = argparse.ArgumentParser(prog="python -m tests.stub", description=__doc__)
parser.add_argument("--port", type=int, default=9000, help="loopback port; 0 picks a free one")
parser.add_argument("--text", default=Behaviour.text, help="what the model says")
parser.add_argument("--repeat", type=int, default=1, help="how often it says it")
parser.add_argument("--pace", type=float, default=0, help="seconds between two events")
options = parser.parse_args()

stopped = threading.Event()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stopped.set())
with Stub(Behaviour(text=options.text, repeat=options.repeat, pace=options.pace), port=options.port) as stub:
    sys.stdout.write(f"listening on {stub.url}\n")
    sys.stdout.flush()
    stopped.wait()
