"""A run, as it is kept in results/<processor and Python>/results.json."""

import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from harness.contenders import CONTENDERS, Contender
from harness.plots import number
from harness.rounds import Samples
from harness.targets import Spread, spread

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Record:
    """A run, as it is kept.

    Attributes:
        date: ISO 8601, in UTC.
        commit: the repository's, with a mark if the tree had changes.
        machine: processor, cores, memory, kernel, and Python.
        rounds: how many.
        streams: numbers of streams that were open at once.
        body_sizes: in characters of the prompt.
        versions: by environment.
        samples: by contender and measurement, one value a round.
        failures: of contenders that could not be installed, or did not answer as asked.
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

    def median(self, name: str, measurement: str) -> str:
        value = self.of(name, measurement)
        return number(value.median) if value else "–"

    def measured(self) -> list[Contender]:
        return [contender for contender in CONTENDERS if contender.name in self.samples]

    def paced(self) -> list[Contender]:
        return [contender for contender in self.measured() if contender.paced]

    @property
    def where(self) -> str:
        return "; ".join(f"{name} {value}" for name, value in self.machine.items())


def read_all() -> list[Record]:
    """The committed run of each machine."""
    return [Record(**json.loads(path.read_text())) for path in sorted(RESULTS.glob("*/results.json"))]


def machine() -> dict[str, str]:
    """The one at hand, and this Python, which all contenders in Python run on.

    Many a virtual machine hides its processor's name, but not its family and model.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "Processor:": processor(Path("/proc/cpuinfo").read_text()),
        "cores:": str(os.cpu_count()),
        "memory:": f"{memory:.0f} GiB",
        "Linux": ".".join(platform.release().split(".")[:2]),
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def processor(cpuinfo: str) -> str:
    found = dict(re.findall(r"^([a-z ]+?)\s*: (.+)$", cpuinfo, re.MULTILINE))
    if "model name" not in found:
        return platform.machine()
    return f"{found['model name'].strip()}, family {found.get('cpu family', '?')}, model {found.get('model', '?')}"


def folder(machine: dict[str, str]) -> Path:
    """Where the results of a machine with this processor and this Python are kept."""
    name = f"{machine['Processor:']} python {machine['Python']}"
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
