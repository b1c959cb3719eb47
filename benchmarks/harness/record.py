"""A run, as it is kept in results.json."""

import json
from dataclasses import dataclass
from pathlib import Path

from harness.contenders import CONTENDERS, Contender
from harness.rounds import Samples
from harness.targets import Spread, spread


@dataclass(frozen=True)
class Record:
    """A run, as it is kept.

    Attributes:
        date: ISO 8601, in UTC.
        commit: the repository's, with a mark if the tree had changes.
        machine: processor, cores, memory and kernel.
        rounds: how many.
        streams: numbers of streams that were open at once.
        body_sizes: in characters of the prompt.
        versions: by environment.
        samples: by contender and measurement, one value a round.
        failures: of optional contenders.
    """

    date: str
    commit: str
    machine: dict[str, str]
    rounds: int
    streams: list[int]
    body_sizes: list[int]
    versions: dict[str, dict[str, str]]
    samples: Samples
    failures: dict[str, str]

    def of(self, name: str, measurement: str) -> Spread | None:
        values = self.samples.get(name, {}).get(measurement)
        return spread(values) if values else None

    def measured(self) -> list[Contender]:
        return [contender for contender in CONTENDERS if contender.name in self.samples]

    def paced(self) -> list[Contender]:
        return [contender for contender in self.measured() if contender.paced]


def read(path: Path) -> Record:
    return Record(**json.loads(path.read_text()))
