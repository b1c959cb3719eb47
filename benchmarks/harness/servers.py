"""Starts contenders on the server's core."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.contenders import LITELLM_QUIET, Contender
from harness.environments import Environment
from harness.process import SERVER_CORE, Process, ended_children_cpu_seconds, pinned
from harness.upstream import Stub
from harness.valkey import Valkey

Running = dict[Contender, tuple[Process, int]]
"""Contenders that have answered once, and their ports."""


class Servers:
    """Where contenders are installed, and what they need."""

    def __init__(self, environments: Mapping[str, Environment], stub: Stub, valkey: Valkey, logs: Path) -> None:
        self.environments, self.stub, self.valkey, self.logs = environments, stub, valkey, logs

    def start(
        self,
        contender: Contender,
        port: int,
        cores: Sequence[int] = (SERVER_CORE,),
        variables: Mapping[str, str] | None = None,
    ) -> Process:
        environment = self.environments[contender.environment]
        place = {"port": str(port), "upstream": self.stub.url}
        if contender.needs_valkey:
            place["valkey"] = self.valkey.address()
        return Process(
            contender.command(environment.program, **place),
            contender.process_environment(**place) | dict(variables or {}),
            *cores,
            log=self.logs / f"{contender.name}.log",
            folder=environment.folder,
        )

    def import_litellm(self) -> dict[str, float]:
        """What `python -c "import litellm"` takes, on the server's core."""
        python = self.environments["plain_litellm"].program
        cpu, started = ended_children_cpu_seconds(), time.perf_counter()
        with pinned(SERVER_CORE):
            subprocess.run([python, "-c", "import litellm"], env=LITELLM_QUIET, check=True)
        elapsed = time.perf_counter() - started
        return {"start_s": elapsed, "start_cpu_s": ended_children_cpu_seconds() - cpu}
