"""The tables of answers in the background: who makes them, what they have said so far, and how they end."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CursorResult, and_, case, delete, func, insert, select, update

from app.database.conversations import UNFINISHED, Body, bodies, clock, insert_items, missing, rows_of
from app.database.store import FINAL, Store, insert_events
from app.database.tables import Event, Item, Response, Worker


class Lost(Exception):
    """The answer is no longer this worker's: it was cancelled or deleted, or another worker has taken it over."""


async def claim(store: Store, response: str) -> tuple[Any, list[Body]] | None:
    """Begin an attempt: return the row of a response and the items of its own request; None if there is nothing to do.

    From now on, an earlier attempt can't write any more.
    """
    async with store.engine.write() as connection:
        where = and_(Response.id == response, Response.status.in_(UNFINISHED))
        interrupted = case((Response.status == "in_progress", 1), else_=0)
        values = {
            "attempt": Response.attempt + 1,
            "interruptions": Response.interruptions + interrupted,
            "status": "in_progress",
        }
        await connection.execute(update(Response).where(where).values(values))
        row = (await connection.execute(select(Response.__table__).where(where))).one_or_none()
        if row is None:
            return None
        return row, await bodies(connection, and_(Item.response == response, ~Item.is_output))


async def put_back(store: Store, row: Any) -> None:
    """Let an answer wait, which this attempt has not begun."""
    async with store.engine.write() as connection:
        mine = and_(Response.id == row.id, Response.attempt == row.attempt, Response.status == "in_progress")
        await connection.execute(update(Response).where(mine).values(status="queued"))


async def note(store: Store, row: Any, events: Sequence[tuple[int, Body]], final: Body | None = None) -> None:
    """Store events with their numbers, and the response when it is complete.

    Raises:
        Lost: nothing was stored, since the answer is no longer this attempt's.
    """
    async with store.engine.write() as connection:
        mine = and_(Response.id == row.id, Response.attempt == row.attempt, Response.status == "in_progress")
        values: Body = {"attempt": row.attempt}
        output: list[Body] = []
        if final:
            body = dict(final)
            output = body.pop("output", None) or []
            values |= {"status": body["status"], "body": body, "request": None}
        result: CursorResult[Any] = await connection.execute(update(Response).where(mine).values(values))
        if not result.rowcount:
            raise Lost
        await insert_events(connection, row.id, events)
        place = {"caller": row.caller, "response": row.id, "conversation": row.conversation}
        await insert_items(connection, rows_of(output, is_output=True, **place))


async def cancel(store: Store, caller: str, response: str) -> None:
    """End an answer in the background, if it isn't complete; nothing happens to another.

    Raises:
        NotFound: there is none.
    """
    async with store.engine.write() as connection:
        own = and_(Response.id == response, Response.caller == caller)
        where = and_(own, Response.status.in_(UNFINISHED))
        result: CursorResult[Any] = await connection.execute(update(Response).where(where).values(status="cancelled"))
        row = (await connection.execute(select(Response.__table__).where(own))).one_or_none()
        if row is None:
            raise missing("response")
        if result.rowcount and row.is_streamed:
            last = await connection.scalar(select(func.max(Event.number)).where(Event.response == response))
            body = row.body | {"status": "cancelled"}
            ended = {"type": "response.incomplete", "response": body}
            await insert_events(connection, response, [((last or 0) + 1, ended)])


async def events_after(store: Store, response: str, number: int, limit: int = 500) -> tuple[list[Body], bool]:
    """Return the events that follow a number, at most so many, and whether these are the last.

    Raises:
        NotFound: the response is gone.
    """
    async with store.engine.read() as connection:
        status = await connection.scalar(select(Response.status).where(Response.id == response))
        if status is None:
            raise missing("response")
        where = and_(Event.response == response, Event.number > number)
        found = list(await connection.scalars(select(Event.body).where(where).order_by(Event.number).limit(limit)))
        return found, status in FINAL and len(found) < limit


async def unqueued(store: Store, before: int) -> list[str]:
    """Return answers that were stored before a time and whose job was not handed to the queue: a process has ended."""
    async with store.engine.read() as connection:
        where = and_(Response.status.in_(UNFINISHED), ~Response.is_queued, Response.created_at < before)
        return list(await connection.scalars(select(Response.id).where(where).limit(100)))


async def queued(store: Store, response: str) -> None:
    """Note that an answer's job has been handed to the queue."""
    async with store.engine.write() as connection:
        await connection.execute(update(Response).where(Response.id == response).values(is_queued=True))


async def waiting(store: Store) -> int:
    """Return how many answers nobody makes yet."""
    async with store.engine.read() as connection:
        where = and_(Response.status.in_(UNFINISHED), Response.status == "queued")
        return int(await connection.scalar(select(func.count()).select_from(Response).where(where)) or 0)


async def seen(store: Store, worker: str, lost_after: float, *, leaves: bool = False) -> list[str]:
    """Note that a worker is there, or leaves; return those that have not been seen for so many seconds."""
    async with store.engine.write() as connection:
        now = await clock(connection)
        at = 0.0 if leaves else now
        mine = update(Worker).where(Worker.id == worker).values(seen_at=at)
        result: CursorResult[Any] = await connection.execute(mine)
        if not result.rowcount:
            await connection.execute(insert(Worker).values(id=worker, seen_at=at))
        return list(await connection.scalars(select(Worker.id).where(Worker.seen_at < now - lost_after)))


async def forget(store: Store, workers: Sequence[str]) -> None:
    """Forget workers whose work others have taken over."""
    async with store.engine.write() as connection:
        await connection.execute(delete(Worker).where(Worker.id.in_(workers)))
