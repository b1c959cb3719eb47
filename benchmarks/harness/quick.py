"""The quick comparison with the committed results, made to raise no false alarm on a busy machine.

All servers run at the same time, so that ours and what it is compared with take turns of a third of a second: what else
the machine does then slows both. A ratio is made of each pair of turns, and their median counts. It is worse if it is
above every ratio that the committed rounds had, by more than a margin, and is so again when it is measured once more.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from harness.contenders import FLOOR, OURS, OURS_LITELLM, PLAIN_LITELLM, Contender
from harness.measures import CLIENTS, closed_loop, first_answer, paced
from harness.process import Process, free_port
from harness.record import Record
from harness.rounds import Samples
from harness.servers import Running, Servers
from harness.targets import CHECKED, DIRECT, MEMORY, PACED, START, VIA_LITELLM, Target, spread
from harness.turns import PACKETS, take_turns

CONTENDERS = (FLOOR, OURS, PLAIN_LITELLM, OURS_LITELLM)
MARGIN = 0.15
"""Of the committed median, on top of the greatest committed ratio."""
TURNS, TURN_SECONDS = 5, 0.25
PACED_TURNS, PACED_SECONDS = 3, 1.2
STREAMS = 1000


@dataclass(frozen=True)
class Comparison:
    """A ratio of now beside the committed one."""

    target: Target
    now: float
    committed: float
    limit: float

    @property
    def worse(self) -> bool:
        return self.now > self.limit


def compare(samples: Samples, records: Sequence[Record], targets: Collection[Target]) -> list[Comparison]:
    """Every ratio that was measured now and in a committed run."""
    found = []
    for target in targets:
        ratios = target.ratios(samples)
        committed = [spread(each) for record in records if (each := target.ratios(record.samples))]
        if ratios and committed:
            limit = max(each.greatest + MARGIN * each.median for each in committed)
            found.append(Comparison(target, median(ratios), max(each.median for each in committed), limit))
    return found


async def check(servers: Servers, records: Sequence[Record]) -> int:
    """Compare, and once more what seems worse; return the exit code."""
    suspects: Collection[Target] = CHECKED
    for attempt in ("", "\nTwice worse than all committed rounds by more than the margin."):
        compared = compare(await measure(servers, suspects), records, suspects)
        for each in compared:
            mark = "WORSE" if each.worse else "ok"
            print(
                f"{mark:6} {each.target.title}: {each.now:.2f}, committed {each.committed:.2f}, limit {each.limit:.2f}"
            )
        suspects = [each.target for each in compared if each.worse]
        if not suspects:
            return 0
        print(attempt or "\nMeasuring once more what is worse.", flush=True)
    return 1


async def measure(servers: Servers, targets: Collection[Target]) -> Samples:
    """Measure what these targets compare."""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        if not {*targets}.isdisjoint((*DIRECT, MEMORY)):
            pair = {each: await start(servers, each, stack, samples) for each in (FLOOR, OURS)}
            await turns(servers, pair, samples, {"request": 0} | {f"packets_{n}": each for n, each in PACKETS.items()})
        if not {*targets}.isdisjoint(VIA_LITELLM):
            pair = {each: await start(servers, each, stack, samples) for each in (PLAIN_LITELLM, OURS_LITELLM)}
            await turns(servers, pair, samples, {"request": 0, "packets_100": 1})
    if not {*targets}.isdisjoint((*PACED, START)):
        for number in range(PACED_TURNS):
            for contender in (OURS, FLOOR) if number % 2 else (FLOOR, OURS):
                await paced_turn(servers, contender, samples)
    return samples


async def turns(servers: Servers, pair: Running, samples: Samples, whats: Mapping[str, int]) -> None:
    for what, each in whats.items():
        found = await take_turns(pair, what, each, servers.stub, TURN_SECONDS, TURNS, failures={})
        for name, measured in found.items():
            for turn in measured:
                keep(samples, name, turn)


async def paced_turn(servers: Servers, contender: Contender, samples: Samples) -> None:
    """In a fresh process: one that was loaded before has memory to spare."""
    with ExitStack() as stack:
        server, port = await start(servers, contender, stack, samples)
        kind = contender.asked(servers.stub.url)
        await closed_loop(port, kind.stream(), CLIENTS, servers.stub, TURN_SECONDS)
        measured = await paced(server, port, kind, servers.stub, STREAMS, PACED_SECONDS, server.rss_mb())
        keep(samples, contender.name, {f"paced_{STREAMS}_{what}": each for what, each in measured.items()})


async def start(servers: Servers, contender: Contender, stack: ExitStack, samples: Samples) -> tuple[Process, int]:
    port = free_port()
    server = stack.enter_context(servers.start(contender, port))
    await first_answer(server, port, contender.asked(servers.stub.url).whole(), servers.stub)
    keep(samples, contender.name, {"start_cpu_s": server.cpu_seconds(), "rss_idle_mb": server.rss_mb()})
    return server, port


def keep(samples: Samples, name: str, measured: Mapping[str, float]) -> None:
    for measurement, value in measured.items():
        samples[name][measurement].append(value)
