"""One round of measurements: every contender in turn, each in a fresh process."""

import asyncio
import gc
import math
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.contenders import LITELLM_QUIET, Contender
from harness.environments import Environment
from harness.load import Answers, ClosedLoop, PacedStreams, Request, UnexpectedAnswer, chat_request
from harness.process import SERVER_CORE, Process, ended_children_cpu_seconds, free_port, pinned

CLIENTS = 32
PACE = 5
"""Chunks a second of a paced stream: about what a person reads."""
OPENED_WITHIN = 7
"""Intervals in which all paced streams are opened; prime, so that their chunks spread evenly."""
SPARE_CHUNKS = 8
"""How many more a paced stream has than are measured, so that it is still open where opening all takes longer."""
FIRST_ANSWER_SECONDS = 120.0

Samples = dict[str, dict[str, list[float]]]
"""By contender, then by measurement: one value of every round."""


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    rounds: int
    burst_seconds: float
    warm_up_seconds: float
    alone_seconds: float
    paced_seconds: float
    streams: tuple[int, ...]
    body_sizes: tuple[int, ...]


FULL = Plan(5, 1.2, 0.5, 0.4, 2.4, (32, 256, 1000), (1_000, 10_000, 100_000, 1_000_000, 5_000_000))
QUICK = Plan(2, 1.0, 0.4, 0.3, 2.0, (1000,), ())


class Rounds:
    """Runs rounds and keeps what they measured."""

    def __init__(
        self, plan: Plan, environments: Mapping[str, Environment], upstream: Process, upstream_port: int, logs: Path
    ) -> None:
        self.plan, self.environments, self.logs = plan, environments, logs
        self.upstream, self.upstream_port = upstream, upstream_port
        self.samples: Samples = defaultdict(lambda: defaultdict(list))
        self.failures: dict[str, str] = {}

    async def run(self, number: int, contenders: Sequence[Contender]) -> None:
        """One round. The order moves on by one each time, so that no contender always follows the same other."""
        turn = number % len(contenders)
        request = chat_request("/v1/chat/completions", {}, "gpt-4o")
        await self.latency("upstream", self.upstream_port, request)
        stream = chat_request("/v1/chat/completions", {}, "gpt-4o", chunks=100)
        await self.first_chunk("upstream", self.upstream_port, stream)
        if number == 0 and self.plan is FULL:
            await self.paced_streams("upstream", self.upstream_port, {}, "gpt-4o", self.upstream)
        if "plain_litellm" in self.environments:
            self.import_litellm()
        for contender in [*contenders[turn:], *contenders[:turn]]:
            print(f"  {contender.title}", flush=True)
            try:
                await self.burst(contender)
                if contender.paced:
                    await self.paced(contender)
            except (UnexpectedAnswer, RuntimeError) as error:
                if not contender.optional:
                    raise RuntimeError(f"{contender.title}: {error}") from error
                self.failures[contender.name] = str(error)

    def keep(self, name: str, **measured: float) -> None:
        for measurement, value in measured.items():
            self.samples[name][measurement].append(value)

    def start(self, contender: Contender, port: int) -> Process:
        environment = self.environments[contender.environment]
        place = {"port": str(port), "upstream": f"http://127.0.0.1:{self.upstream_port}"}
        return Process(
            contender.command(environment.program, **place),
            contender.process_environment(**place),
            SERVER_CORE,
            self.logs / f"{contender.name}.log",
            environment.folder,
        )

    def headers(self, contender: Contender) -> dict[str, str]:
        upstream = f"http://127.0.0.1:{self.upstream_port}"
        return {name: value.replace("{upstream}", upstream) for name, value in contender.headers.items()}

    async def burst(self, contender: Contender) -> None:
        """Start, memory, and CPU of requests that come as fast as they are answered."""
        port = free_port()
        headers = self.headers(contender)
        request = chat_request("/v1/chat/completions", headers, contender.model)
        stream = chat_request("/v1/chat/completions", headers, contender.model, chunks=100)
        with self.start(contender, port) as server:
            start_s = await first_answer(server, port, request)
            start_cpu_s = server.cpu_seconds()
            await asyncio.sleep(0.3)
            self.keep(contender.name, start_s=start_s, start_cpu_s=start_cpu_s, rss_idle_mb=server.rss_mb())
            await closed_loop(port, request, CLIENTS, self.plan.warm_up_seconds)
            await self.loop_cpu(contender.name, "request", server, port, request)
            await self.latency(contender.name, port, request)
            if contender.streams:
                await closed_loop(port, stream, CLIENTS, self.plan.warm_up_seconds)
                await self.loop_cpu(contender.name, "stream", server, port, stream)
                await self.first_chunk(contender.name, port, stream)
            self.keep(contender.name, rss_peak_mb=server.peak_rss_mb())
            if contender.paced:
                for size in self.plan.body_sizes:
                    await self.body(contender, server, port, size)

    async def loop_cpu(self, name: str, kind: str, server: Process, port: int, request: Request) -> None:
        load = ClosedLoop(port, request, CLIENTS)
        await load.connect()
        gc.collect()
        before = server.cpu_seconds()
        answers = await load.run(self.plan.burst_seconds)
        used = server.cpu_seconds() - before
        count = len(answers.whole)
        self.keep(
            name,
            **{
                f"{kind}_cpu_ms": used / count * 1e3,
                f"{kind}s_per_s": count / answers.elapsed,
                f"{kind}_core_busy": used / answers.elapsed,
            },
        )

    async def latency(self, name: str, port: int, request: Request) -> None:
        """What one client sees who is alone."""
        whole = (await closed_loop(port, request, 1, self.plan.alone_seconds)).whole
        self.keep(name, latency_p50_ms=percentile(whole, 50) * 1e3, latency_p99_ms=percentile(whole, 99) * 1e3)

    async def first_chunk(self, name: str, port: int, stream: Request) -> None:
        first = (await closed_loop(port, stream, 1, self.plan.alone_seconds)).first
        self.keep(name, first_chunk_p50_ms=percentile(first, 50) * 1e3, first_chunk_p99_ms=percentile(first, 99) * 1e3)

    async def body(self, contender: Contender, server: Process, port: int, size: int) -> None:
        request = chat_request("/v1/chat/completions", self.headers(contender), contender.model, characters=size)
        await closed_loop(port, request, 4, 0.05)
        before = server.cpu_seconds()
        count = len((await closed_loop(port, request, 4, self.plan.alone_seconds)).whole)
        self.keep(contender.name, **{f"body_{size}_cpu_ms": (server.cpu_seconds() - before) / count * 1e3})

    async def paced(self, contender: Contender) -> None:
        port = free_port()
        headers = self.headers(contender)
        request = chat_request("/v1/chat/completions", headers, contender.model)
        stream = chat_request("/v1/chat/completions", headers, contender.model, chunks=100)
        with self.start(contender, port) as server:
            await first_answer(server, port, request)
            await closed_loop(port, request, CLIENTS, self.plan.warm_up_seconds)
            await closed_loop(port, stream, CLIENTS, self.plan.warm_up_seconds)
            await self.paced_streams(contender.name, port, headers, contender.model, server)

    async def paced_streams(
        self, name: str, port: int, headers: Mapping[str, str], model: str, server: Process
    ) -> None:
        """CPU per chunk, jitter and memory with many streams open, while all of them are open."""
        idle_mb = server.rss_mb()
        chunks = OPENED_WITHIN + SPARE_CHUNKS + int(self.plan.paced_seconds * PACE)
        request = chat_request("/v1/chat/completions", headers, model, chunks=chunks, pace=PACE)
        for count in self.plan.streams:
            load = PacedStreams(port, request, count)
            await load.connect()
            gc.collect()
            load.start(1 / PACE, OPENED_WITHIN)
            await load.opened(1 / PACE)
            since, cpu, received = time.perf_counter(), server.cpu_seconds(), load.received()
            own_cpu, upstream_cpu = time.process_time(), self.upstream.cpu_seconds()
            await load.wait(self.plan.paced_seconds)
            until, cpu, received = time.perf_counter(), server.cpu_seconds() - cpu, load.received() - received
            load_cpu = time.process_time() - own_cpu + self.upstream.cpu_seconds() - upstream_cpu
            stream_kb = (server.rss_mb() - idle_mb) / count * 1024
            await load.finish()
            jitter = [abs(gap - 1 / PACE) for gap in load.gaps(since, until)]
            self.keep(
                name,
                **{
                    f"paced_{count}_cpu_us": cpu / received * 1e6,
                    f"paced_{count}_jitter_p50_ms": percentile(jitter, 50) * 1e3,
                    f"paced_{count}_jitter_p99_ms": percentile(jitter, 99) * 1e3,
                    f"paced_{count}_stream_kb": stream_kb,
                    f"paced_{count}_core_busy": cpu / (until - since),
                    f"paced_{count}_load_core_busy": load_cpu / (until - since),
                },
            )

    def import_litellm(self) -> None:
        """What `python -c "import litellm"` takes, on the server's core."""
        python = self.environments["plain_litellm"].program
        cpu, started = ended_children_cpu_seconds(), time.perf_counter()
        with pinned(SERVER_CORE):
            subprocess.run([python, "-c", "import litellm"], env=LITELLM_QUIET, check=True)
        elapsed = time.perf_counter() - started
        self.keep("import_litellm", start_s=elapsed, start_cpu_s=ended_children_cpu_seconds() - cpu)


async def closed_loop(port: int, request: Request, clients: int, seconds: float) -> Answers:
    load = ClosedLoop(port, request, clients)
    await load.connect()
    return await load.run(seconds)


async def first_answer(server: Process, port: int, request: Request) -> float:
    """Seconds from the start of the process to the end of its first good answer.

    Raises:
        UnexpectedAnswer: There was none in two minutes.
        RuntimeError: The process ended.
    """
    while True:
        server.raise_if_ended()
        try:
            await closed_loop(port, request, 1, 0)
        except (OSError, UnexpectedAnswer) as error:
            if time.perf_counter() - server.started > FIRST_ANSWER_SECONDS:
                raise UnexpectedAnswer(f"no answer in {FIRST_ANSWER_SECONDS:.0f} s: {error}") from error
            await asyncio.sleep(0.005)
        else:
            return time.perf_counter() - server.started


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all are not above."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
