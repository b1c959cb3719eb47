"""What is asked of the tables. Whatever a caller names is looked for among its own alone."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import and_, delete, func, insert, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from app.database.conversations import (
    Body,
    Conversations,
    bodies,
    conversation_row,
    insert_items,
    missing,
    page,
    rows_of,
    touch,
)
from app.database.engine import Engine
from app.database.tables import Conversation, Event, Item, Response
from app.errors import InvalidRequest

FINAL = ("completed", "incomplete", "failed", "cancelled")
"""Statuses of an answer that nothing is added to any more."""
LONGEST_CHAIN = 10_000
BATCH = 200
"""Responses, or conversations, that are deleted in one transaction."""


class Store(Conversations):
    """The queries. Each method is one transaction, and raises DatabaseUnavailable if the database does not answer.

    Args:
        engine: the connections.
        largest: bytes of JSON that the earlier turns of a request may have.
    """

    def __init__(self, engine: Engine, largest: int) -> None:
        super().__init__(engine)
        self._largest = largest

    # --- Responses ----------------------------------------------------------------------------------------------------

    async def history(self, caller: str, previous: str) -> list[Body]:
        """Return the items of a response and of all that it goes on from, in their order.

        Raises:
            NotFound: there is no such response, or one before it is gone.
            InvalidRequest: it isn't complete yet, or it is all too long.
        """
        own = [Response.id, Response.previous, Response.status]
        chain = select(*own, literal(0).label("depth")).where(Response.id == previous, Response.caller == caller)
        turns = chain.cte(recursive=True)
        earlier = aliased(Response)
        step = and_(earlier.id == turns.c.previous, earlier.caller == caller, turns.c.depth < LONGEST_CHAIN)
        turns = turns.union_all(select(earlier.id, earlier.previous, earlier.status, turns.c.depth + 1).where(step))
        size = select(func.sum(Item.size)).where(Item.response == turns.c.id).scalar_subquery()
        async with self.engine.read() as connection:
            found = (await connection.execute(select(turns, size.label("size")).order_by(turns.c.depth))).all()
            if not found or found[-1].previous:
                raise missing("response", "previous_response_id", "previous_response_not_found")
            if found[0].status not in FINAL:
                message = "previous_response_id: this response is still being made."
                raise InvalidRequest(message, param="previous_response_id", code="response_in_progress")
            self._bound(sum(row.size or 0 for row in found), "previous_response_id")
            return await bodies(connection, Item.response.in_(select(turns.c.id)))

    async def conversation_items(self, caller: str, conversation: str) -> list[Body]:
        """Return the items of a conversation, in their order; errors as in `history`."""
        async with self.engine.read() as connection:
            await conversation_row(connection, caller, conversation)
            size = select(func.sum(Item.size)).where(Item.conversation == conversation)
            self._bound(await connection.scalar(size) or 0, "conversation")
            return await bodies(connection, Item.conversation == conversation)

    async def items(self, caller: str, ids: Sequence[str]) -> dict[str, Body]:
        """Return those of a caller's items that have one of these ids; of several with one id, the last."""
        async with self.engine.read() as connection:
            where = and_(Item.caller == caller, Item.id.in_(ids))
            self._bound(await connection.scalar(select(func.sum(Item.size)).where(where)) or 0, "input")
            return {body["id"]: body for body in await bodies(connection, where)}

    def _bound(self, size: int, param: str) -> None:
        if size > self._largest:
            raise InvalidRequest(f"{param}: what was said before has more than {self._largest} bytes.", param=param)

    async def add(
        self,
        caller: str,
        body: Body,
        given: list[Body],
        events: Sequence[Body] = (),
        *,
        is_stored: bool = True,
        **columns: Any,
    ) -> None:
        """Store an answer, and what was asked.

        Args:
            caller: whose it is.
            body: the response object.
            given: the items that this request has added.
            events: its first events, of one in the background.
            is_stored: whether the response is; if not, only the items are, in their conversation.
            columns: further columns of the response, such as `previous` and `conversation`.
        """
        conversation = columns.get("conversation")
        body = dict(body)
        output = body.pop("output", None) or []
        place = {"caller": caller, "response": body["id"] if is_stored else None, "conversation": conversation}
        rows = rows_of(given, is_output=False, **place) + rows_of(output, is_output=True, **place)
        async with self.engine.write() as connection:
            if conversation:
                await touch(connection, conversation)
            if is_stored:
                row = {"id": body["id"], "caller": caller, "created_at": body["created_at"], "status": body["status"]}
                await connection.execute(insert(Response).values(**row, body=body, **columns))
            await insert_items(connection, rows)
            await insert_events(connection, body["id"], enumerate(events))

    async def get(self, caller: str, response: str) -> Any:
        """Return the row of a response, with the whole object as its `body`.

        Raises:
            NotFound: there is none.
        """
        async with self.engine.read() as connection:
            where = and_(Response.id == response, Response.caller == caller)
            row = (await connection.execute(select(Response.__table__).where(where))).one_or_none()
            if row is None:
                raise missing("response")
            output = await bodies(connection, and_(Item.response == response, Item.is_output))
            row.body.update(status=row.status, output=output)
            return row

    async def delete(self, caller: str, response: str) -> None:
        """Delete a response with all that belongs to it; errors as in `get`."""
        async with self.engine.write() as connection:
            where = and_(Response.id == response, Response.caller == caller)
            if not (await connection.execute(delete(Response).where(where))).rowcount:
                raise missing("response")

    async def input_items(self, caller: str, response: str, **place: Any) -> Body:
        """Return a page of a response's input; arguments and errors as in `conversation_page` and `get`."""
        async with self.engine.read() as connection:
            where = and_(Response.id == response, Response.caller == caller)
            if await connection.scalar(select(Response.id).where(where)) is None:
                raise missing("response")
            return await page(connection, and_(Item.response == response, ~Item.is_output), **place)

    # --- Retention ----------------------------------------------------------------------------------------------------

    async def purge(self, before: int) -> list[str]:
        """Delete some of what is older than a time; return the ids of the responses among it, none if nothing is left.

        Args:
            before: seconds since 1970: responses made before it, and conversations last used before it.
        """
        async with self.engine.write() as connection:
            old = select(Conversation.id).where(Conversation.used_at < before).limit(BATCH)
            conversations = list(await connection.scalars(old))
            is_old = and_(Response.created_at < before, Response.conversation.is_(None))
            where = or_(is_old, Response.conversation.in_(conversations))
            responses = list(await connection.scalars(select(Response.id).where(where).limit(BATCH)))
            await connection.execute(delete(Response).where(Response.id.in_(responses)))
            if len(responses) < BATCH:
                await connection.execute(delete(Conversation).where(Conversation.id.in_(conversations)))
        return responses or conversations


async def insert_events(connection: AsyncConnection, response: str, events: Iterable[tuple[int, Body]]) -> None:
    """Store the events of a response, each with its number."""
    rows = [
        {"response": response, "number": number, "body": body | {"sequence_number": number}} for number, body in events
    ]
    if rows:
        await connection.execute(insert(Event), rows)
