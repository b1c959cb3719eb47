"""One round of measurements: every contender in turn, each in a fresh process."""

import asyncio
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.contenders import CHAT, LITELLM_QUIET, Contender
from harness.environments import Environment
from harness.load import UnexpectedAnswer
from harness.measures import CLIENTS, alone, closed_loop, first_answer, loop, paced
from harness.process import SERVER_CORE, Process, ended_children_cpu_seconds, free_port, pinned
from harness.requests import Kind
from harness.upstream import Stub
from harness.valkey import Valkey

Samples = dict[str, dict[str, list[float]]]
"""By contender, then by measurement: one value of every round."""

PACKETS = {100: 1, 4: 25}
"""By the number of packets of a stream of 100 chunks: events a packet."""


@dataclass(frozen=True)
class Plan:
    """How much to measure; times are in seconds.

    Attributes:
        rounds: how often.
        burst: of requests, or streams, as fast as they are answered.
        warm_up: of the same, before it.
        alone: of one client's requests or streams.
        paced: of watching streams at a steady pace.
        streams: how many of them are open at once.
        body_sizes: in characters of the prompt.
    """

    rounds: int = 5
    burst: float = 1.0
    warm_up: float = 0.4
    alone: float = 0.3
    paced: float = 2.0
    streams: tuple[int, ...] = (256, 1000)
    body_sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)


class Servers:
    """Starts contenders."""

    def __init__(self, environments: Mapping[str, Environment], stub: Stub, valkey: Valkey, logs: Path) -> None:
        self.environments, self.stub, self.valkey, self.logs = environments, stub, valkey, logs

    def start(
        self, contender: Contender, port: int, cores: Sequence[int] = (SERVER_CORE,), variables: Mapping[str, str] = {}
    ) -> Process:
        environment = self.environments[contender.environment]
        place = {"port": str(port), "upstream": self.stub.url}
        if contender.needs_valkey:
            place["valkey"] = self.valkey.address()
        return Process(
            contender.command(environment.program, **place),
            contender.process_environment(**place) | dict(variables),
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


class Rounds:
    """Runs rounds and keeps what they measured."""

    def __init__(self, plan: Plan, servers: Servers) -> None:
        self.plan, self.servers, self.stub = plan, servers, servers.stub
        self.samples: Samples = defaultdict(lambda: defaultdict(list))
        self.failures: dict[str, str] = {}

    async def run(self, number: int, contenders: Sequence[Contender]) -> None:
        """One round. The order moves on by one each time, so that no contender always follows the same other."""
        turn = number % len(contenders)
        self.keep("upstream", await alone(self.stub.port, CHAT, self.stub, self.plan.alone, streams=True))
        if "plain_litellm" in self.servers.environments:
            self.keep("import_litellm", self.servers.import_litellm())
        for contender in [*contenders[turn:], *contenders[:turn]]:
            if contender.name in self.failures:
                continue
            print(f"  {contender.title}", flush=True)
            try:
                await self.burst(contender)
                if contender.paced:
                    await self.paced(contender)
            except (UnexpectedAnswer, RuntimeError) as error:
                if contender.needed:
                    raise RuntimeError(f"{contender.title}: {error}") from error
                self.failures[contender.name] = str(error)

    def keep(self, name: str, measured: Mapping[str, float]) -> None:
        for measurement, value in measured.items():
            self.samples[name][measurement].append(value)

    async def burst(self, contender: Contender) -> None:
        """Start, memory, and CPU of requests that come as fast as they are answered."""
        port, kind, name = free_port(), contender.asked(self.stub.url), contender.name
        with self.servers.start(contender, port) as server:
            start_s = await first_answer(server, port, kind.whole(), self.stub)
            start_cpu_s = server.cpu_seconds()
            await asyncio.sleep(0.3)
            self.keep(name, {"start_s": start_s, "start_cpu_s": start_cpu_s, "rss_idle_mb": server.rss_mb()})
            await closed_loop(port, kind.whole(), CLIENTS, self.stub, self.plan.warm_up)
            self.keep(name, await loop("request", server, port, kind.whole(), self.stub, self.plan.burst))
            if contender.streams:
                await closed_loop(port, kind.stream(), CLIENTS, self.stub, self.plan.warm_up)
                for packets, each in PACKETS.items():
                    request = kind.stream(each=each)
                    self.keep(name, await loop(f"packets_{packets}", server, port, request, self.stub, self.plan.burst))
            self.keep(name, await alone(port, kind, self.stub, self.plan.alone, streams=contender.streams))
            self.keep(name, {"rss_peak_mb": server.peak_rss_mb()})
            if contender.paced:
                await self.bodies(name, server, port, kind)

    async def bodies(self, name: str, server: Process, port: int, kind: Kind) -> None:
        """CPU of large requests."""
        for size in self.plan.body_sizes:
            request = kind.whole(characters=size)
            await closed_loop(port, request, 4, self.stub, 0.05)
            before = server.cpu_seconds()
            count = len((await closed_loop(port, request, 4, self.stub, self.plan.alone)).whole)
            self.keep(name, {f"body_{size}_cpu_ms": (server.cpu_seconds() - before) / count * 1e3})

    async def paced(self, contender: Contender) -> None:
        """CPU, jitter and memory with many streams open, in a process of its own."""
        port, kind = free_port(), contender.asked(self.stub.url)
        with self.servers.start(contender, port) as server:
            await first_answer(server, port, kind.whole(), self.stub)
            await closed_loop(port, kind.whole(), CLIENTS, self.stub, self.plan.warm_up)
            await closed_loop(port, kind.stream(), CLIENTS, self.stub, self.plan.warm_up)
            idle_mb = server.rss_mb()
            for count in self.plan.streams:
                measured = await paced(server, port, kind, self.stub, count, self.plan.paced, idle_mb)
                self.keep(contender.name, {f"paced_{count}_{what}": value for what, value in measured.items()})
