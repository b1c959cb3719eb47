"""Rounds: in each, every contender is started anew, and all of them take turns."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from harness.contenders import CHAT, Contender
from harness.load import UnexpectedAnswer
from harness.measures import CLIENTS, alone, closed_loop, first_answer, paced
from harness.process import Process, free_port
from harness.requests import Kind
from harness.servers import Running, Servers
from harness.turns import PACKETS, take_turns

Samples = dict[str, dict[str, list[float]]]
"""By contender, then by measurement: one value of every round."""


@dataclass(frozen=True)
class Plan:
    """How much to measure; times are in seconds.

    Attributes:
        rounds: how often.
        turns: of each contender, for each kind of request.
        turn: of requests, or streams, as fast as they are answered.
        alone: of one client's requests or streams.
        paced: of watching streams at a steady pace.
        streams: how many of them are open at once.
        body_sizes: in characters of the prompt.
    """

    rounds: int = 5
    turns: int = 4
    turn: float = 0.3
    alone: float = 0.3
    paced: float = 2.0
    streams: tuple[int, ...] = (256, 1000)
    body_sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)


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
        with ExitStack() as stack:
            running: Running = {}
            for contender in [*contenders[turn:], *contenders[:turn]]:
                if contender.name not in self.failures:
                    print(f"  {contender.title}", flush=True)
                    await self.start(contender, running, stack)
            print("  in turns", flush=True)
            for what, each in {"request": 0, **{f"packets_{n}": each for n, each in PACKETS.items()}}.items():
                found = await take_turns(
                    running, what, each, self.stub, self.plan.turn, self.plan.turns, failures=self.failures
                )
                for name, turns in found.items():
                    self.keep(name, {key: median(turn[key] for turn in turns if key in turn) for key in turns[0]})
            for contender, (server, port) in running.items():
                await self.alone(contender, server, port)
        for contender in contenders:
            if contender.paced:
                await self.paced(contender)

    def keep(self, name: str, measured: Mapping[str, float]) -> None:
        for measurement, value in measured.items():
            self.samples[name][measurement].append(value)

    async def start(self, contender: Contender, running: Running, stack: ExitStack) -> None:
        """Start it; what that takes, and its memory."""
        port, kind = free_port(), contender.asked(self.stub.url)
        server = stack.enter_context(self.servers.start(contender, port))
        try:
            start_s = await first_answer(server, port, kind.whole(), self.stub)
        except (UnexpectedAnswer, RuntimeError) as error:
            if contender.needed:
                raise RuntimeError(f"{contender.title}: {error}") from error
            self.failures[contender.name] = str(error)
            return
        start_cpu_s = server.cpu_seconds()
        await asyncio.sleep(0.3)
        self.keep(contender.name, {"start_s": start_s, "start_cpu_s": start_cpu_s, "rss_idle_mb": server.rss_mb()})
        running[contender] = server, port

    async def alone(self, contender: Contender, server: Process, port: int) -> None:
        """Latency of one client, memory after all the load, and large requests."""
        kind, name = contender.asked(self.stub.url), contender.name
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
            await closed_loop(port, kind.whole(), CLIENTS, self.stub, self.plan.turn)
            await closed_loop(port, kind.stream(), CLIENTS, self.stub, self.plan.turn)
            idle_mb = server.rss_mb()
            for count in self.plan.streams:
                measured = await paced(server, port, kind, self.stub, count, self.plan.paced, idle_mb)
                self.keep(contender.name, {f"paced_{count}_{what}": value for what, value in measured.items()})
