"""The measures themselves: what is asked of a running server, and what the kernel says of it meanwhile."""

import asyncio
import gc
import math
import time
from collections.abc import Sequence

from harness import instructions
from harness.load import Answers, ClosedLoop, PacedStreams, UnexpectedAnswer
from harness.process import Process
from harness.requests import Kind, Request
from harness.upstream import Stub

CLIENTS = 32
PACE = 5
"""Chunks a second of a paced stream: about what a person reads."""
OPENED_WITHIN = 7
"""Intervals in which all paced streams are opened; prime, so that their chunks spread evenly."""
SPARE_CHUNKS = 8
"""How many more a paced stream has than are measured, so that it is still open where opening all takes longer."""
FIRST_ANSWER_SECONDS = 120.0


async def closed_loop(port: int, request: Request, clients: int, stub: Stub, seconds: float) -> Answers:
    load = ClosedLoop(port, request, clients, stub)
    await load.connect()
    return await load.run(seconds)


async def first_answer(server: Process, port: int, request: Request, stub: Stub) -> float:
    """Seconds from the start of the process to the end of its first good answer.

    Raises:
        UnexpectedAnswer: There was none in two minutes.
        RuntimeError: The process ended.
    """
    while True:
        server.raise_if_ended()
        try:
            await closed_loop(port, request, 1, stub, 0)
        except (OSError, UnexpectedAnswer) as error:
            if time.perf_counter() - server.started > FIRST_ANSWER_SECONDS:
                raise UnexpectedAnswer(f"no answer in {FIRST_ANSWER_SECONDS:.0f} s: {error}") from error
            await asyncio.sleep(0.005)
        else:
            return time.perf_counter() - server.started


async def loop(
    what: str, server: Process, port: int, request: Request, stub: Stub, seconds: float, clients: int
) -> dict[str, float]:
    """CPU of an answer, where clients ask again as soon as they are answered, and the packets that it took."""
    load = ClosedLoop(port, request, clients, stub)
    await load.connect()
    gc.collect()
    with instructions.count(server.pids()) as executed:
        before, sleeps = server.cpu_seconds(), server.sleeps()
        answers = await load.run(seconds)
        used, sleeps = server.cpu_seconds() - before, server.sleeps() - sleeps
    count = len(answers.whole)
    measured = {
        f"{what}_cpu_ms": used / count * 1e3,
        f"{what}_per_s": count / answers.elapsed,
        f"{what}_core_busy": used / answers.elapsed,
        f"{what}_sleeps": sleeps / count,
        f"{what}_packets_in": answers.packets_in / count,
        f"{what}_packets_out": answers.packets_out / count,
    }
    return measured | {f"{what}_kinstructions": each / count / 1e3 for each in executed}


async def alone(port: int, kind: Kind, stub: Stub, seconds: float, *, streams: bool) -> dict[str, float]:
    """What one client sees who is alone: to the end of an answer, and to the first chunk of a stream."""
    whole = (await closed_loop(port, kind.whole(), 1, stub, seconds)).whole
    measured = {"latency_p50_ms": percentile(whole, 50) * 1e3, "latency_p99_ms": percentile(whole, 99) * 1e3}
    if streams:
        first = (await closed_loop(port, kind.stream(), 1, stub, seconds)).first
        measured["first_chunk_p50_ms"] = percentile(first, 50) * 1e3
    return measured


async def paced(
    server: Process,
    port: int,
    kind: Kind,
    stub: Stub,
    count: int,
    seconds: float,
    idle_mb: float,
    *,
    pace: int = PACE,
    to_the_end: bool = True,
) -> dict[str, float]:
    """CPU per chunk, jitter and memory while so many streams are open.

    Args:
        idle_mb: the server's memory before any was.
        pace: chunks a second of each.
        to_the_end: waits until every stream has ended well, instead of leaving them.
    """
    chunks = OPENED_WITHIN + SPARE_CHUNKS + math.ceil(seconds * pace)
    load = PacedStreams(port, kind.stream(chunks=chunks, pace=pace), count, stub)
    await load.connect()
    gc.collect()
    load.start(1 / pace, OPENED_WITHIN)
    await load.opened(1 / pace)
    since, cpu, received = time.perf_counter(), server.cpu_seconds(), load.received()
    own_cpu, rss_mb = time.process_time(), server.rss_mb()
    await load.wait(seconds)
    until, cpu, received = time.perf_counter(), server.cpu_seconds() - cpu, load.received() - received
    own_cpu = time.process_time() - own_cpu
    rss_mb = max(rss_mb, server.rss_mb())
    if to_the_end:
        await load.finish()
    else:
        load.leave()
    jitter = [abs(gap - 1 / pace) for gap in load.gaps(since, until)]
    return {
        "cpu_us": cpu / received * 1e6,
        "jitter_p50_ms": percentile(jitter, 50) * 1e3,
        "jitter_p99_ms": percentile(jitter, 99) * 1e3,
        "stream_kb": (rss_mb - idle_mb) / count * 1024,
        "core_busy": cpu / (until - since),
        "load_core_busy": own_cpu / (until - since),
        "chunks_per_s": received / (until - since),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all are not above."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
