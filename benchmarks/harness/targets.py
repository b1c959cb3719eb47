"""What must hold: the ratios of the design."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from harness.rounds import Samples


@dataclass(frozen=True)
class Spread:
    """A median, between the least and the greatest."""

    median: float
    least: float
    greatest: float


def spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(median(values), min(values), max(values))


@dataclass(frozen=True)
class Target:
    """A ratio of one contender's measurement to another's, and the most that it may be."""

    title: str
    measured: tuple[str, str]
    against: tuple[str, str]
    limit: float

    def ratios(self, samples: Samples) -> list[float]:
        """One of each round, so that what slows the machine for a while slows both sides; none if not measured."""
        above, below = (samples.get(name, {}).get(what, []) for name, what in (self.measured, self.against))
        if len(above) != len(below):
            return []
        return [one / other for one, other in zip(above, below, strict=True)]

    def ratio(self, samples: Samples) -> Spread | None:
        ratios = self.ratios(samples)
        return spread(ratios) if ratios else None


def same(title: str, measurement: str, limit: float, ours: str = "ours", against: str = "floor") -> Target:
    return Target(title, (ours, measurement), (against, measurement), limit)


REQUEST, ONE, MANY = "request_cpu_ms", "packets_100_cpu_ms", "packets_4_cpu_ms"
DIRECT = (
    same("direct request: CPU, to the floor's", REQUEST, 2.0),
    same("100 chunks, one a packet: CPU, to the floor's", ONE, 1.2),
    same("100 chunks in 4 packets: CPU, to the floor's", MANY, 1.5),
)
VIA_LITELLM = (
    same("via LiteLLM, request: CPU, to plain acompletion's", REQUEST, 1.15, "ours_litellm", "plain_litellm"),
    same("via LiteLLM, stream: CPU, to plain acompletion's", ONE, 1.15, "ours_litellm", "plain_litellm"),
)
MEMORY = same("RSS after the first answer, to the floor's", "rss_idle_mb", 1.75)
PACED = (
    same("chunk of 1,000 paced streams: CPU, to the floor's", "paced_1000_cpu_us", 1.2),
    same("memory per open stream at 1,000, to the floor's", "paced_1000_stream_kb", 1.5),
)
START = same("CPU of the start, to the floor's", "start_cpu_s", 4.0)
"""Beside the time of the start, which depends on who else uses the machine."""


def dialects() -> list[Target]:
    found = []
    for form, limit in (("passed through", 1.1), ("bridged", 2.0)):
        for dialect in ("responses", "messages"):
            name = f"{dialect}_{form.partition(' ')[0]}"
            found += [
                same(f"/v1/{dialect} {form}, request: CPU, to chat's", REQUEST, limit, name, "ours"),
                same(f"/v1/{dialect} {form}, stream: CPU, to chat's", ONE, limit, name, "ours"),
            ]
    return found


TARGETS = (
    *DIRECT,
    same("direct request: CPU, to smg's", REQUEST, 3.0, "ours", "smg"),
    *PACED,
    *dialects(),
    *VIA_LITELLM,
    Target("start to first answer, to `import litellm`", ("ours", "start_s"), ("import_litellm", "start_s"), 0.35),
    START,
    MEMORY,
    Target(
        "CPU per chunk at 1,000 paced streams, to that at 256",
        ("ours", "paced_1000_cpu_us"),
        ("ours", "paced_256_cpu_us"),
        1.1,
    ),
)
CHECKED = (*DIRECT, *PACED, *VIA_LITELLM, START, MEMORY)
"""What `--quick` compares with the committed results."""
