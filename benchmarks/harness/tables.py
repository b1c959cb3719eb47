"""The report's tables."""

from collections.abc import Iterable, Sequence

from harness.contenders import VARIANTS
from harness.plots import number
from harness.record import Record
from harness.targets import MANY, ONE, REQUEST, TARGETS, Spread, same, spread


def cell(value: Spread | None) -> str:
    """The median, and the least and the greatest behind it."""
    if value is None:
        return "–"
    return f"{number(value.median)} ({number(value.least)}–{number(value.greatest)})"


def times(record: Record, name: str, measurement: str, against: str = "floor") -> str:
    """A ratio and its spread."""
    return cell(same("", measurement, 0, name, against).ratio(record.samples))


def added(record: Record, name: str, measurement: str) -> str:
    """What a contender adds to the upstream's own latency, measured in the same round."""
    mine, alone = record.samples[name].get(measurement), record.samples["upstream"].get(measurement)
    if not mine or not alone or len(mine) != len(alone):
        return "–"
    return number(spread(one - other for one, other in zip(mine, alone, strict=True)).median)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
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
    head = ["", "CPU of a request, ms", "Requests a second"]
    head += ["CPU of a stream in 100 packets, ms", "CPU of a stream in 4 packets, ms"]
    return table(
        head,
        [
            [each.title, *(cell(record.of(each.name, what)) for what in (REQUEST, "request_per_s", ONE, MANY))]
            for each in record.measured()
        ],
    )


def ratios_table(record: Record) -> str:
    return table(
        ["CPU, to the floor's", "a request", "a stream in 100 packets", "a stream in 4 packets"],
        [
            [each.title, *(times(record, each.name, what) for what in (REQUEST, ONE, MANY))]
            for each in record.measured()
            if each.name != "floor"
        ],
    )


def variants_table(record: Record) -> str:
    """What else the backend does, beside its chat."""
    names = [each for each in VARIANTS if each.name in record.samples]
    return table(
        ["CPU, to `this backend, direct`", "a request", "a stream in 100 packets", "a stream in 4 packets"],
        [[each.title, *(times(record, each.name, what, "ours") for what in (REQUEST, ONE, MANY))] for each in names],
    )


def packets_table(record: Record) -> str:
    """What one more packet costs is the difference between the two kinds of stream, which have the same events."""
    rows = []
    for each in record.measured():
        samples = record.samples[each.name]
        if not (one := samples.get(ONE)) or not (many := samples.get(MANY)):
            continue
        packet = spread((a - b) / 96 * 1e3 for a, b in zip(one, many, strict=True))
        event = spread(value / 100 * 1e3 for value in many)
        counted = [
            " / ".join(record.median(each.name, f"packets_{n}_packets_{way}") for way in ("in", "out"))
            for n in (100, 4)
        ]
        sleeps = [record.median(each.name, f"packets_{n}_sleeps") for n in (100, 4)]
        rows.append([each.title, *counted, cell(packet), cell(event), " / ".join(sleeps)])
    head = ["", "Packets in / out of a stream in 100", "of a stream in 4", "CPU of one more packet, µs"]
    return table([*head, "CPU of an event, 25 a packet, µs", "Sleeps during a stream: 100 packets / 4"], rows)


def instructions_table(record: Record) -> str:
    """Empty where the machine counts no instructions."""
    whats = ("request_kinstructions", "packets_100_kinstructions", "packets_4_kinstructions")
    rows = [
        [each.title, *(f"{cell(record.of(each.name, what))}, {times(record, each.name, what)}×" for what in whats)]
        for each in record.measured()
        if record.of(each.name, whats[0])
    ]
    head = [
        "Thousand instructions, and to the floor's",
        "a request",
        "a stream in 100 packets",
        "a stream in 4 packets",
    ]
    return table(head, rows) if rows else ""


def held(records: Sequence[Record], name: str, measurement: str, against: str) -> str:
    """A ratio as it held on all machines: the least and the greatest of all rounds."""
    target = same("", measurement, 0, name, against)
    ratios = [ratio for record in records for ratio in target.ratios(record.samples)]
    if not ratios:
        return "–"
    least, greatest = number(min(ratios)), number(max(ratios))
    return f"{least}×" if least == greatest else f"{least}–{greatest}×"


def summary_table(records: Sequence[Record]) -> str:
    """The few ratios that a README has room for."""
    columns = {
        "CPU of a request": (REQUEST, "floor"),
        "CPU of 100 chunks, one a packet": (ONE, "floor"),
        "in 4 packets": (MANY, "floor"),
        "Memory": ("rss_idle_mb", "floor"),
        "Start, to `import litellm`": ("start_s", "import_litellm"),
    }
    named = {contender.name: contender.title for record in records for contender in record.measured()}
    rows = [
        [title, *(held(records, name, *column) for column in columns.values())]
        for name, title in named.items()
        if held(records, name, ONE, "floor") != "–"  # the demo model calls no upstream
    ]
    return table(["", *columns], rows)


def latency_table(record: Record) -> str:
    rows = []
    for contender in record.measured():
        name = contender.name
        rows.append(
            [
                contender.title,
                *(added(record, name, what) for what in ("latency_p50_ms", "latency_p99_ms", "first_chunk_p50_ms")),
                *(cell(record.of(name, what)) for what in ("rss_idle_mb", "rss_peak_mb", "start_s")),
            ]
        )
    rows.append(['`python -c "import litellm"`', *["–"] * 5, cell(record.of("import_litellm", "start_s"))])
    head = ["", "Added latency, ms: p50", "p99", "to the first chunk"]
    return table([*head, "RSS after the first answer, MB", "at the peak", "Start to first answer, s"], rows)


def paced_table(record: Record) -> str:
    rows = []
    for count in record.streams:
        for contender in record.paced():
            whats = ("cpu_us", "jitter_p50_ms", "jitter_p99_ms", "stream_kb", "core_busy", "load_core_busy")
            measured = [cell(record.of(contender.name, f"paced_{count}_{what}")) for what in whats]
            rows.append([f"{count:,}", contender.title, *measured])
    head = ["Streams", "", "CPU of a chunk, µs", "Jitter, ms: p50", "p99", "Memory of an open stream, kB"]
    return table([*head, "Core busy", "Load's core busy"], rows)


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
