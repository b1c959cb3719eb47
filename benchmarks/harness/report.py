"""The report: Markdown, plots, and the raw numbers, made from nothing but the record of a run."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from harness.contenders import CONTENDERS
from harness.plots import Bar, Line, bars, lines
from harness.record import Record, folder
from harness.tables import (
    body_table,
    cpu_table,
    held,
    instructions_table,
    latency_table,
    paced_table,
    packets_table,
    ratios_table,
    summary_table,
    targets_table,
    variants_table,
    versions_table,
)
from harness.targets import ONE, REQUEST

HOW = (
    "CPU is that of the server's processes, user and system. Ratios are made within each round. "
    "`benchmarks/README.md` says how all this is measured."
)


BEGIN, END = "<!-- benchmarks: written by benchmarks/run.py -->", "<!-- /benchmarks -->"
NAMED = ("python", "fastapi", "uvicorn", "aiohttp", "litellm")


def write(record: Record, into: Path) -> None:
    """Write report.md, results.json and the plots."""
    into.mkdir(parents=True, exist_ok=True)
    (into / "results.json").write_text(json.dumps(asdict(record), indent=1) + "\n")
    (into / "report.md").write_text(markdown(record))
    for stale in into.glob("*.svg"):
        stale.unlink()
    for name, plot in plots(record).items():
        (into / f"{name}.svg").write_text(plot)


def quote(records: Sequence[Record], readme: Path) -> None:
    """Put the ratios of all machines' runs into a README, between its two marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{readme} lacks {BEGIN!r} or {END!r}")
    readme.write_text(before + quotation(records) + after)


def quotation(records: Sequence[Record]) -> str:
    """What a README shows of the runs, its two marks included."""
    large = held(records, "ours", "body_1000000_cpu_ms", "floor")
    what = (
        "Ratios to the floor, the least and the greatest of all rounds, of requests of 700 characters from 32 clients\n"
        f"(8 for LiteLLM's); with a million characters, ours takes {large} the floor. "
        "Memory is that after the first answer. Ours\n"
        "has keys, limits, logs and metrics on. It can be below the floor, which calls its upstream by aiohttp. "
        "[benchmarks/](benchmarks/README.md) measures your machine."
    )
    where = []
    for record in records:
        day, report = record.date.partition(" ")[0], f"benchmarks/results/{folder(record.machine).name}/report.md"
        versions = ", ".join(f"{name} {record.versions['project'][name]}" for name in NAMED)
        where.append(
            f"- {record.where}: {record.rounds} rounds, {day}, commit {record.commit}; {versions} ([report]({report}))"
        )
    return "\n".join([BEGIN, f"{what}\n", summary_table(records), "Measured on:\n", *where, END])


def markdown(record: Record) -> str:
    instructions = instructions_table(record)
    parts = [
        "# Benchmark results\n",
        f"{record.date}, commit {record.commit}. {record.where}.\n",
        f"Medians of {record.rounds} rounds, with the least and the greatest. {HOW}\n",
        "## Targets\n",
        targets_table(record),
        "## CPU\n",
        cpu_table(record),
        "![CPU of a request](request.svg)\n",
        "![CPU of a stream](stream.svg)\n",
        "## Ratios\n",
        ratios_table(record),
        variants_table(record),
        "## Packets\n",
        "Counted by the kernel on the sockets of the stub upstream and of the load.\n",
        packets_table(record),
        instructions or "This machine counts no instructions (`perf stat`), so there are none here.\n",
        "## Latency, memory, start\n",
        "Latency is what one client alone sees, less the stub upstream's own in the same round.\n",
        latency_table(record),
        "![Memory](memory.svg)\n",
        "![Start](start.svg)\n",
    ]
    if record.streams:
        parts += [
            "## Many open streams\n",
            "Five chunks a second each. Jitter is how far the time between two chunks is from 200 ms.\n",
            paced_table(record),
        ]
    if len(record.streams) > 1:
        parts += ["![CPU of a chunk](chunk.svg)\n", "![Jitter](jitter.svg)\n"]
    if record.body_sizes:
        parts += ["## Large requests\n", body_table(record), "![Large requests](body.svg)\n"]
    parts += ["## Versions\n", versions_table(record)]
    if record.failures:
        titles = {contender.name: contender.title for contender in CONTENDERS}
        parts.append("## Not measured whole\n")
        parts += [f"{titles[name]}: {reason[:300]}\n" for name, reason in record.failures.items()]
    return "\n".join(parts)


def plots(record: Record) -> dict[str, str]:
    drawn = {}
    for name, title, unit, measurement, logarithmic in (
        ("request", "CPU of a request", "ms", REQUEST, True),
        ("stream", "CPU of 100 chunks, one a packet", "ms", ONE, True),
        ("memory", "Memory at the peak", "MB", "rss_peak_mb", False),
        ("start", "Start to first answer", "s", "start_s", False),
    ):
        rows = []
        for contender in record.measured():
            if value := record.of(contender.name, measurement):
                colour = 0 if contender.ours else 1
                rows.append(Bar(contender.title, colour, value.median, value.least, value.greatest))
        if rows:
            drawn[name] = bars(title, unit, rows, logarithmic=logarithmic)
    if len(record.streams) > 1:
        drawn["chunk"] = lines("CPU of a chunk", "µs", "open streams, 5 chunks a second each", by_streams(record))
        drawn["jitter"] = lines(
            "Jitter of a chunk: median, and dashed the 99th percentile",
            "ms",
            "open streams, 5 chunks a second each",
            by_streams(record, "jitter_p50_ms") + by_streams(record, "jitter_p99_ms", dashed=True),
            logarithmic=True,
        )
    if len(record.body_sizes) > 1:
        series = []
        for n, contender in enumerate(record.paced()):
            points = {s: record.of(contender.name, f"body_{s}_cpu_ms") for s in record.body_sizes}
            series.append(Line(contender.title, 1 - n, {s: v.median for s, v in points.items() if v}))
        drawn["body"] = lines("CPU of a request", "ms", "characters of prompt", series, logarithmic=True)
    return drawn


def by_streams(record: Record, what: str = "cpu_us", *, dashed: bool = False) -> list[Line]:
    series = []
    for n, contender in enumerate(record.paced()):
        points = {s: record.of(contender.name, f"paced_{s}_{what}") for s in record.streams}
        title = "" if dashed else contender.title
        series.append(Line(title, 1 - n, {s: v.median for s, v in points.items() if v}, dashed))
    return series
