"""Thousands of open streams, on one core and on two workers: what they cost, and where it bends."""

import json
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.contenders import OURS
from harness.measures import CLIENTS, closed_loop, first_answer, paced
from harness.plots import number
from harness.process import LOAD_CORE, SERVER_CORE, free_port
from harness.servers import Servers
from harness.tables import table

STEPS = ((1000, 5), (2500, 5), (5000, 1), (5000, 5), (10_000, 1), (10_000, 2))
"""Open streams, and chunks a second of each."""
SECONDS = 5.0
WORKERS = (1, 2)
SPARE_FILES = 200
"""What a process has open besides its streams' connections."""
BOUND = 0.9
"""Share of a core above which it decides what is measured."""

JITTER = (
    "Jitter is how far the time between two chunks is from the pace's. Where the load's core is busy, the load and the "
    "stub upstream are late themselves."
)


@dataclass(frozen=True)
class Scale:
    """A run, as it is kept in scale.json; a row is one step on so many workers."""

    date: str
    commit: str
    machine: dict[str, str]
    rows: list[dict[str, float]]


def open_files(wanted: int) -> int:
    """Raise this process's limit, which servers inherit, as far as it goes; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


async def run(servers: Servers, cores: Sequence[int]) -> list[dict[str, float]]:
    """Every step in a fresh process.

    A stream is two open files in the server, and two in the load, which is the upstream too: the limit of open files
    may allow fewer streams than a step asks for. Ports are no limit: Linux has 28,000 for the load's connections to the
    server, and as many for the server's to the upstream.
    """
    most = (open_files(2 * max(count for count, _ in STEPS) + SPARE_FILES) - SPARE_FILES) // 2
    rows = []
    for workers in WORKERS:
        # With two cores, the second worker shares the load's: CPU and memory count, jitter less.
        where = cores[1 : 1 + workers] if len(cores) > workers else [SERVER_CORE, LOAD_CORE][:workers]
        for count, pace in STEPS:
            measured = await step(servers, where, workers, min(count, most), pace)
            rows.append({"workers": workers, "streams": min(count, most), "pace": pace} | measured)
            print(f"  workers: {workers}, streams: {min(count, most):,}, chunks a second each: {pace}", flush=True)
    return rows


async def step(servers: Servers, cores: Sequence[int], workers: int, count: int, pace: int) -> dict[str, float]:
    port, kind = free_port(), OURS.asked(servers.stub.url)
    variables = {"APP_MAX_IN_FLIGHT": "20000", "APP_WORKERS": str(workers)}
    with servers.start(OURS, port, cores, variables) as server:
        await first_answer(server, port, kind.whole(), servers.stub)
        await closed_loop(port, kind.whole(), CLIENTS, servers.stub, 0.5)
        await closed_loop(port, kind.stream(), CLIENTS, servers.stub, 0.5)
        idle_mb = server.rss_mb()
        measured = await paced(server, port, kind, servers.stub, count, SECONDS, idle_mb, pace=pace, to_the_end=False)
        return measured | {"idle_mb": idle_mb, "peak_mb": server.peak_rss_mb()}


def write(scale: Scale, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    (into / "scale.json").write_text(json.dumps(asdict(scale), indent=1) + "\n")
    (into / "scale.md").write_text(markdown(scale))


def read(path: Path) -> Scale:
    return Scale(**json.loads(path.read_text()))


def markdown(scale: Scale) -> str:
    where = "; ".join(f"{name} {value}" for name, value in scale.machine.items())
    head = ["Workers", "Open streams", "Chunks a second each", "Chunks a second that came", "Cores busy"]
    head += ["Load's core busy", "CPU of a chunk, µs", "Jitter, ms: p50", "p99", "Memory, MB", "of a stream, kB"]
    rows = []
    for row in scale.rows:
        late = row["load_core_busy"] > BOUND
        whats = ("cpu_us", "jitter_p50_ms", "jitter_p99_ms", "peak_mb", "stream_kb")
        rows.append(
            [
                f"{row['workers']:.0f}",
                f"{row['streams']:,.0f}",
                f"{row['pace']:.0f}",
                f"{row['chunks_per_s']:,.0f}",
                number(row["core_busy"]),
                number(row["load_core_busy"]) + (" (the load's limit)" if late else ""),
                *(number(row[what]) for what in whats),
            ]
        )
    return "\n".join(
        [
            "# Many open streams\n",
            f"{scale.date}, commit {scale.commit}. {where}.\n",
            f"{JITTER}\n",
            table(head, rows),
        ]
    )
