"""What must hold: the design's targets, and no ratio much worse than the one last committed."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from harness.rounds import Samples

WORSE = 1.25


@dataclass(frozen=True)
class Spread:
    """A median over the rounds, between the least and the greatest."""

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

    def best(self, samples: Samples) -> float | None:
        """Made of each side's best round: what else the machine does only ever adds. None if not measured."""
        above, below = (samples.get(name, {}).get(what, []) for name, what in (self.measured, self.against))
        return min(above) / min(below) if above and below else None

    def ratio(self, samples: Samples) -> Spread | None:
        """Made within each round, so that what slows the machine for a while slows both sides; None if not measured."""
        above, below = (samples.get(name, {}).get(what, []) for name, what in (self.measured, self.against))
        if not above or not below:
            return None
        return spread(one / other for one, other in zip(above, below, strict=True))


def same(title: str, measurement: str, limit: float, ours: str = "ours", against: str = "floor") -> Target:
    return Target(title, (ours, measurement), (against, measurement), limit)


TARGETS = (
    same("direct request: CPU, to the floor's", "request_cpu_ms", 3.0),
    same("direct 100-chunk stream: CPU, to the floor's", "stream_cpu_ms", 1.2),
    same("chunk of 1,000 paced streams: CPU, to the floor's", "paced_1000_cpu_us", 1.5),
    same("via LiteLLM, request: CPU, to plain acompletion's", "request_cpu_ms", 1.15, "ours_litellm", "plain_litellm"),
    same("via LiteLLM, stream: CPU, to plain acompletion's", "stream_cpu_ms", 1.15, "ours_litellm", "plain_litellm"),
    Target("start to first answer, to `import litellm`", ("ours", "start_s"), ("import_litellm", "start_s"), 0.35),
    same("RSS after the first answer, to the floor's", "rss_idle_mb", 1.75),
    same("memory per open stream at 1,000, to the floor's", "paced_1000_stream_kb", 2.0),
    Target(
        "CPU per chunk at 1,000 paced streams, to that at 256",
        ("ours", "paced_1000_cpu_us"),
        ("ours", "paced_256_cpu_us"),
        1.1,
    ),
)


CHECKED = (
    *(target for target in TARGETS if target.measured[1] != "start_s"),
    # Instead of the time that a start takes, which depends on who else uses the machine.
    Target("CPU of the start, to `import litellm`", ("ours", "start_cpu_s"), ("import_litellm", "start_cpu_s"), 0.35),
)


@dataclass(frozen=True)
class Comparison:
    """A ratio of this run's best rounds beside the committed one's."""

    title: str
    now: float
    committed: float

    @property
    def worse(self) -> bool:
        return self.now > self.committed * WORSE


def compare(samples: Samples, committed: Samples) -> list[Comparison]:
    """Every ratio that both runs have."""
    found = []
    for target in CHECKED:
        now, then = target.best(samples), target.best(committed)
        if now and then:
            found.append(Comparison(target.title, now, then))
    return found
