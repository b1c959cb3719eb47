"""The report: Markdown, plots, and the raw numbers, made from nothing but the record of a run."""

import json
from dataclasses import asdict
from pathlib import Path

from harness.contenders import CONTENDERS
from harness.plots import Bar, Line, bars, lines
from harness.record import Record
from harness.tables import (
    body_table,
    cpu_table,
    latency_table,
    paced_table,
    summary_table,
    targets_table,
    versions_table,
)

HOW = (
    "CPU is that of the server's processes, user and system. Ratios are made within each round. "
    "`benchmarks/README.md` says how all this is measured."
)


BEGIN, END = "<!-- benchmarks: written by benchmarks/run.py -->", "<!-- /benchmarks -->"
NAMED = ("python", "fastapi", "uvicorn", "aiohttp", "litellm")


def write(record: Record, folder: Path) -> None:
    """Write report.md, results.json and the plots."""
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(asdict(record), indent=1) + "\n")
    (folder / "report.md").write_text(markdown(record))
    for name, plot in plots(record).items():
        (folder / f"{name}.svg").write_text(plot)


def quote(record: Record, readme: Path) -> None:
    """Put the figures of a run into a README, between its two marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{readme} lacks {BEGIN!r} or {END!r}")
    readme.write_text(before + quotation(record) + after)


def quotation(record: Record) -> str:
    """What a README shows of a run, its two marks included."""
    machine = "; ".join(f"{name} {value}" for name, value in record.machine.items())
    versions = ", ".join(f"{name} {record.versions['project'][name]}" for name in NAMED)
    what = f"Medians of {record.rounds} rounds and ratios to the floor; ours has keys, limits, logs and metrics on."
    where = f"{record.date.partition(' ')[0]}, commit {record.commit}; {machine}; {versions}."
    plot = "![CPU of a request](benchmarks/results/request.svg)"
    return "\n".join([BEGIN, f"{what} {where}\n", summary_table(record), plot, END])


def markdown(record: Record) -> str:
    machine = "; ".join(f"{name} {value}" for name, value in record.machine.items())
    parts = [
        "# Benchmark results\n",
        f"{record.date}, commit {record.commit}. {machine}.\n",
        f"Medians of {record.rounds} rounds, with the least and the greatest. {HOW}\n",
        "## Targets\n",
        targets_table(record),
        "## CPU\n",
        cpu_table(record),
        "![CPU of a request](request.svg)\n",
        "![CPU of a stream](stream.svg)\n",
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
        ("request", "CPU of a request", "ms", "request_cpu_ms", True),
        ("stream", "CPU of a 100-chunk stream", "ms", "stream_cpu_ms", True),
        ("memory", "Memory at the peak", "MB", "rss_peak_mb", False),
        ("start", "Start to first answer", "s", "start_s", False),
    ):
        rows = []
        for contender in record.measured():
            if value := record.of(contender.name, measurement):
                colour = 0 if contender.environment == "project" else 1
                rows.append(Bar(contender.title, colour, value.median, value.least, value.greatest))
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
