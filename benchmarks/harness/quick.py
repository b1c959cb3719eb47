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
from harness.measures import CLIENTS, closed_loop, first_answer, loop, paced
from harness.process import Process, free_port
from harness.record import Record
from harness.requests import Request
from harness.rounds import PACKETS, Samples, Servers
from harness.targets import CHECKED, DIRECT, PACED, VIA_LITELLM, Target, spread

CONTENDERS = (FLOOR, OURS, PLAIN_LITELLM, OURS_LITELLM)
MARGIN = 0.15
"""Of the committed median, on top of the greatest committed ratio."""
TURNS, TURN_SECONDS = 7, 0.3
LITELLM_TURNS, LITELLM_TURN_SECONDS = 5, 0.4
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
    wanted = {name for target in targets for name, _ in (target.measured, target.against)}
    with ExitStack() as stack:
        if "import_litellm" in wanted:
            keep(samples, "import_litellm", servers.import_litellm())
        running = {}
        for contender in CONTENDERS:
            if contender.name in wanted:
                running[contender] = await start(servers, contender, stack, samples)
        turns = Turns(servers, running, samples)
        if not {*targets}.isdisjoint(DIRECT):
            for number in range(TURNS):
                await turns.direct((FLOOR, OURS), TURN_SECONDS, number)
        if not {*targets}.isdisjoint(VIA_LITELLM):
            for number in range(LITELLM_TURNS):
                await turns.direct((PLAIN_LITELLM, OURS_LITELLM), LITELLM_TURN_SECONDS, number, (100,))
    if not {*targets}.isdisjoint(PACED):
        for number in range(PACED_TURNS):
            for contender in in_turn((FLOOR, OURS), number):
                # In a fresh process: one that was loaded before has memory to spare.
                with ExitStack() as stack:
                    server, port = await start(servers, contender, stack, None)
                    kind = contender.asked(servers.stub.url)
                    await closed_loop(port, kind.stream(), CLIENTS, servers.stub, TURN_SECONDS)
                    idle = server.rss_mb()
                    measured = await paced(server, port, kind, servers.stub, STREAMS, PACED_SECONDS, idle)
                    keep(samples, contender.name, {f"paced_{STREAMS}_{what}": each for what, each in measured.items()})
    return samples


async def start(
    servers: Servers, contender: Contender, stack: ExitStack, samples: Samples | None
) -> tuple[Process, int]:
    port = free_port()
    server = stack.enter_context(servers.start(contender, port))
    await first_answer(server, port, contender.asked(servers.stub.url).whole(), servers.stub)
    if samples is not None:
        keep(samples, contender.name, {"start_cpu_s": server.cpu_seconds(), "rss_idle_mb": server.rss_mb()})
    return server, port


class Turns:
    """Ours and another, turn by turn."""

    def __init__(self, servers: Servers, running: Mapping[Contender, tuple[Process, int]], samples: Samples) -> None:
        self.servers, self.running, self.samples = servers, running, samples

    async def direct(
        self, pair: tuple[Contender, Contender], seconds: float, number: int, packets: Sequence[int] = tuple(PACKETS)
    ) -> None:
        """One turn each with requests and with every kind of stream; the very first is for warming up."""
        asked = {"request": 0} | {f"packets_{each}": PACKETS[each] for each in packets}
        for what, each in asked.items():
            for contender in in_turn(pair, number):
                kind = contender.asked(self.servers.stub.url)
                request = kind.stream(each=each) if each else kind.whole()
                measured = await self.turn(contender, what, request, seconds)
                if number:
                    keep(self.samples, contender.name, measured)

    async def turn(self, contender: Contender, what: str, request: Request, seconds: float) -> dict[str, float]:
        server, port = self.running[contender]
        return await loop(what, server, port, request, self.servers.stub, seconds)


def in_turn(pair: tuple[Contender, Contender], number: int) -> tuple[Contender, ...]:
    return pair[::-1] if number % 2 else pair


def keep(samples: Samples, name: str, measured: Mapping[str, float]) -> None:
    for measurement, value in measured.items():
        samples[name][measurement].append(value)
