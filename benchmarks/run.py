# /// script
# requires-python = ">=3.11"
# dependencies = ["copier>=9.18", "httptools", "uvloop"]
# ///
"""Measure a generated backend beside its peers. Run it as `uv run benchmarks/run.py`; README.md has the rest."""

import argparse
import os
import platform
import resource
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from harness import environments
from harness.contenders import CONTENDERS, FLOOR, OURS, OURS_LITELLM, PLAIN_LITELLM, Contender
from harness.environments import Environment, build
from harness.process import LOAD_CORE, pinned, start_upstream
from harness.record import Record, read
from harness.report import quote, write
from harness.rounds import FULL, QUICK, Plan, Rounds
from harness.tables import targets_table
from harness.targets import WORSE, compare

RESULTS = Path(__file__).parent / "results"
QUICK_CONTENDERS = (FLOOR, OURS, OURS_LITELLM, PLAIN_LITELLM)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    mode = arguments.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="compare the ratios with the committed ones; fail if worse")
    mode.add_argument("--peers", action="store_true", help="measure LiteLLM's proxy and Portkey's gateway too")
    arguments.add_argument(
        "--only", metavar="NAMES", help="comma-separated names of contenders; the report goes nowhere"
    )
    arguments.add_argument("--rounds", type=int, help="instead of the usual number")
    given = arguments.parse_args()
    if not {0, 1} <= os.sched_getaffinity(0):
        print("Two cores are needed: one for the load, one for the server.", file=sys.stderr)
        return 2
    if given.quick and not (RESULTS / "results.json").exists():
        print("There are no committed results to compare with: run this without --quick first.", file=sys.stderr)
        return 2
    allow_open_files(8192)
    chosen = choose(given.only, quick=given.quick, peers=given.peers)
    plan = QUICK if given.quick else FULL
    print("Installing the contenders", flush=True)
    built = {name: build(name) for name in ["project", *sorted({c.environment for c in chosen} - {"project"})]}
    if given.quick:
        return check(chosen, plan, built)
    record = measure(chosen, plan, given.rounds or plan.rounds, built)
    print("\n" + targets_table(record))
    folder = Path(tempfile.mkdtemp(prefix="benchmark-")) if given.only else RESULTS
    write(record, folder)
    if folder == RESULTS:
        quote(record, environments.REPOSITORY / "README.md")
    print(f"Report: {folder / 'report.md'}")
    return 0


def choose(only: str | None, *, quick: bool, peers: bool) -> Sequence[Contender]:
    if only:
        names = only.split(",")
        known = {contender.name: contender for contender in CONTENDERS}
        if unknown := set(names) - set(known):
            raise SystemExit(f"No such contender: {', '.join(sorted(unknown))}. There are: {', '.join(known)}.")
        return [known[name] for name in names]
    if quick:
        return QUICK_CONTENDERS
    return [contender for contender in CONTENDERS if peers or not contender.optional]


def check(chosen: Sequence[Contender], plan: Plan, built: dict[str, Environment]) -> int:
    """Compare with the committed results; what is worse is measured once more before it counts."""
    committed = read(RESULTS / "results.json")
    suspects: set[str] | None = None
    while True:
        record = measure(chosen, plan, plan.rounds, built)
        compared = compare(record.samples, committed.samples)
        print()
        for each in compared:
            mark = "WORSE" if each.worse else "ok"
            print(f"{mark:6} {each.title}: {each.now:.2f}, committed {each.committed:.2f}")
        worse = {each.title for each in compared if each.worse}
        if not worse or (suspects is not None and not worse & suspects):
            return 0
        if suspects is not None:
            print(f"\nTwice over {WORSE:g} times the committed ratio: {'; '.join(sorted(worse & suspects))}.")
            return 1
        suspects = worse
        print("\nMeasuring once more.", flush=True)


def measure(chosen: Sequence[Contender], plan: Plan, rounds: int, built: dict[str, Environment]) -> Record:
    """Run the rounds, with the load on a core of its own."""
    with tempfile.TemporaryDirectory(prefix="benchmark-logs-") as logs, pinned(LOAD_CORE):
        run = uvloop.run(run_rounds(chosen, plan, rounds, built, Path(logs)))
    commit = environments.run("git", "rev-parse", "--short", "HEAD").strip()
    changed = environments.run("git", "status", "--porcelain", "--", "template", "copier.yml").strip()
    return Record(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=commit + (" with changes" if changed else ""),
        machine=machine(),
        rounds=rounds,
        streams=list(plan.streams),
        body_sizes=list(plan.body_sizes),
        versions={name: environment.versions for name, environment in built.items()},
        samples={name: dict(measured) for name, measured in run.samples.items()},
        failures=run.failures,
    )


async def run_rounds(
    chosen: Sequence[Contender], plan: Plan, rounds: int, built: dict[str, Environment], logs: Path
) -> Rounds:
    upstream, port = start_upstream(logs / "upstream.log")
    with upstream:
        run = Rounds(plan, built, upstream, port, logs)
        for number in range(rounds):
            print(f"Round {number + 1} of {rounds}", flush=True)
            await run.run(number, chosen)
    return run


def machine() -> dict[str, str]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "Processor:": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores:": str(os.cpu_count()),
        "memory:": f"{memory:.0f} GiB",
        "Linux": ".".join(platform.release().split(".")[:2]),
    }


def allow_open_files(wanted: int) -> None:
    """A thousand streams are a thousand sockets here and two thousand in the server, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


if __name__ == "__main__":
    sys.exit(main())
