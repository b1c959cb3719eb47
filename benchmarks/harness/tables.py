"""The report's tables."""

from harness.plots import number
from harness.record import Record
from harness.targets import TARGETS, Spread, spread


def cell(value: Spread | None) -> str:
    """The median, and the least and the greatest behind it."""
    if value is None:
        return "–"
    return f"{number(value.median)} ({number(value.least)}–{number(value.greatest)})"


def to_floor(record: Record, name: str, measurement: str) -> str:
    mine, floor = record.samples[name].get(measurement), record.samples.get("floor", {}).get(measurement)
    if not mine or not floor or len(mine) != len(floor):
        return "–"
    return number(spread(one / other for one, other in zip(mine, floor, strict=True)).median) + "×"


def added(record: Record, name: str, measurement: str) -> str:
    """What a contender adds to the upstream's own latency, measured in the same round."""
    mine, alone = record.samples[name].get(measurement), record.samples["upstream"].get(measurement)
    if not mine or not alone or len(mine) != len(alone):
        return "–"
    return number(spread(one - other for one, other in zip(mine, alone, strict=True)).median)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines_ = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines_ + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def targets_table(record: Record) -> str:
    rows = []
    for target in TARGETS:
        ratio = target.ratio(record.samples)
        verdict = "not measured" if ratio is None else "pass" if ratio.median <= target.limit else "**fail**"
        rows.append([target.title, f"≤ {target.limit:g}", cell(ratio), verdict])
    return table(["Ratio", "Target", "Measured", ""], rows)


def cpu_table(record: Record) -> str:
    rows = []
    for contender in record.measured():
        name = contender.name
        rows.append(
            [
                contender.title,
                cell(record.of(name, "request_cpu_ms")),
                to_floor(record, name, "request_cpu_ms"),
                cell(record.of(name, "stream_cpu_ms")),
                to_floor(record, name, "stream_cpu_ms"),
                cell(record.of(name, "requests_per_s")),
            ]
        )
    return table(
        [
            "",
            "CPU of a request, ms",
            "to the floor",
            "CPU of a 100-chunk stream, ms",
            "to the floor",
            "Requests a second",
        ],
        rows,
    )


def summary_table(record: Record) -> str:
    """The few figures that a README has room for."""
    rows = []
    for contender in record.measured():
        name = contender.name
        medians = [record.of(name, what) for what in ("request_cpu_ms", "stream_cpu_ms", "rss_idle_mb", "start_s")]
        request, stream, memory, start = (number(value.median) if value else "–" for value in medians)
        rows.append(
            [
                contender.title,
                f"{request} ({to_floor(record, name, 'request_cpu_ms')})",
                f"{stream} ({to_floor(record, name, 'stream_cpu_ms')})" if stream != "–" else stream,
                memory,
                start,
            ]
        )
    return table(
        ["", "CPU of a request, ms", "CPU of a 100-chunk stream, ms", "Memory, MB", "Start to first answer, s"], rows
    )


def latency_table(record: Record) -> str:
    rows = []
    for contender in record.measured():
        name = contender.name
        rows.append(
            [
                contender.title,
                added(record, name, "latency_p50_ms"),
                added(record, name, "latency_p99_ms"),
                added(record, name, "first_chunk_p50_ms"),
                cell(record.of(name, "rss_idle_mb")),
                cell(record.of(name, "rss_peak_mb")),
                cell(record.of(name, "start_s")),
            ]
        )
    rows.append(['`python -c "import litellm"`', *["–"] * 5, cell(record.of("import_litellm", "start_s"))])
    return table(
        [
            "",
            "Added latency, ms: p50",
            "p99",
            "to the first chunk",
            "RSS after the first answer, MB",
            "at the peak",
            "Start to first answer, s",
        ],
        rows,
    )


def paced_table(record: Record) -> str:
    rows = []
    for count in record.streams:
        for name, title in [(c.name, c.title) for c in record.paced()] + [("upstream", "the stub upstream alone")]:
            measured = [
                record.of(name, f"paced_{count}_{what}")
                for what in ("cpu_us", "jitter_p50_ms", "jitter_p99_ms", "stream_kb")
            ]
            rows.append([f"{count:,}", title, *map(cell, measured)])
    return table(["Streams", "", "CPU of a chunk, µs", "Jitter, ms: p50", "p99", "Memory of an open stream, kB"], rows)


def body_table(record: Record) -> str:
    contenders = record.paced()
    rows = [
        [f"{size:,}", *(cell(record.of(contender.name, f"body_{size}_cpu_ms")) for contender in contenders)]
        for size in record.body_sizes
    ]
    return table(["Characters of prompt", *(f"{c.title}, CPU ms a request" for c in contenders)], rows)


def versions_table(record: Record) -> str:
    return table(
        ["Environment", "Versions"],
        [
            [environment.replace("_", " "), ", ".join(f"{name} {version}" for name, version in versions.items())]
            for environment, versions in record.versions.items()
        ],
    )
