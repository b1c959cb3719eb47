"""Contenders take turns of a fraction of a second, so that what else the machine does slows them all."""

from harness.load import UnexpectedAnswer
from harness.measures import loop
from harness.servers import Running
from harness.upstream import Stub

PACKETS = {100: 1, 4: 25}
"""By the number of packets of a stream of 100 chunks: events a packet."""


async def take_turns(
    running: Running,
    what: str,
    each: int,
    stub: Stub,
    seconds: float,
    turns: int,
    *,
    failures: dict[str, str],
) -> dict[str, list[dict[str, float]]]:
    """Measure one kind of request, turn by turn; each contender has one turn more, to warm up.

    Args:
        running: who takes turns; one that fails and is not needed is taken out.
        what: begins the names of the measurements.
        each: events a packet of a stream; 0 for answers that aren't streamed.
        seconds: of a turn.
        turns: that count.
        failures: gets the reason, by the name of a contender.

    Returns:
        By contender, the measurements of every turn.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(turns + 1):
        order = [contender for contender in running if contender.streams or not each]
        turn = number % max(1, len(order))
        for contender in order[turn:] + order[:turn]:
            server, port = running[contender]
            kind = contender.asked(stub.url)
            request = kind.stream(each=each) if each else kind.whole()
            try:
                measured = await loop(what, server, port, request, stub, seconds, contender.clients)
            except UnexpectedAnswer as error:
                if contender.needed:
                    raise RuntimeError(f"{contender.title}, {what}: {error}") from error
                failures[contender.name] = f"{what}: {error}"
                del running[contender]
                found.pop(contender.name, None)
            else:
                if number:
                    found.setdefault(contender.name, []).append(measured)
    return found
