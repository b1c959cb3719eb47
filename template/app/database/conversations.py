"""Conversations: what is asked of their tables, and how items are stored and listed."""

import secrets
import time
from collections.abc import Iterable
from typing import Any, Literal

from pydantic_core import to_json
from sqlalchemy import ColumnElement, CursorResult, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database.engine import Engine
from app.database.tables import Conversation, Item, Response, Worker
from app.errors import AppError

Body = dict[str, Any]
UNFINISHED = ("queued", "in_progress")
LOST_AFTER = 6.0
"""Seconds without a heartbeat after which others take over what a worker was doing."""
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


class NotFound(AppError):
    status, code = 404, "not_found"


class ConversationLocked(AppError):
    """An answer is being made in the conversation. OpenAI's own status and code, on which openai-agents tries again."""

    status, code = 400, "conversation_locked"
    should_retry = True


def missing(what: str, param: str | None = None, code: str | None = None) -> NotFound:
    """Return the error for what isn't there, or is another caller's."""
    return NotFound(
        f"There is no such {what} here: it was never stored, has expired, or was deleted.", param=param, code=code
    )


def new_id(prefix: str) -> str:
    """Return an id that can't be guessed."""
    return f"{prefix}_{secrets.token_hex(24)}"


def prepared(items: Iterable[Body]) -> list[Body]:
    """Return items as they are stored: each with an id, and messages with a list of parts, as clients list them."""
    found = []
    for sent in items:
        kind = sent.get("type") or "message"
        item = sent | {"id": str(sent.get("id") or new_id(PREFIXES.get(kind, "item"))), "type": kind}
        if kind == "message":
            if isinstance(text := item.get("content"), str):
                is_said = item.get("role") == "assistant"
                part: Body = {"type": "output_text", "annotations": []} if is_said else {"type": "input_text"}
                item["content"] = [{**part, "text": text}]
            item.setdefault("status", "completed")
        found.append(item)
    return found


def rows_of(items: Iterable[Body], *, is_output: bool, **columns: Any) -> list[Body]:
    """Return the rows of items, each with these columns."""
    return [
        {"id": str(item.get("id"))[:256], "body": item, "size": len(to_json(item)), "is_output": is_output, **columns}
        for item in items
    ]


class Conversations:
    """The queries of conversations, whose items are each its own caller's. A method is one transaction.

    Args:
        engine: the connections.

    Attributes:
        worker: the name of this process, while it runs.

    Raises:
        DatabaseUnavailable: every method, while the database does not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.worker = ""

    async def conversation_page(self, caller: str, conversation: str, **place: Any) -> Body:
        """Return a page of a conversation's items.

        Args:
            caller: whose it is.
            conversation: its id.
            place: `limit`, `order` (asc or desc), and `after`, the id of the last item of the page before.
        """
        async with self.engine.read() as connection:
            await conversation_row(connection, caller, conversation)
            return await page(connection, Item.conversation == conversation, **place)

    async def create_conversation(self, caller: str, about: Body, items: list[Body]) -> Body:
        """Store a new conversation; return its object."""
        now = int(time.time())
        row = {"id": new_id("conv"), "caller": caller, "created_at": now, "used_at": now, "about": about}
        async with self.engine.write() as connection:
            await connection.execute(insert(Conversation).values(row))
            place = {"caller": caller, "response": None, "conversation": row["id"]}
            await insert_items(connection, rows_of(items, is_output=False, **place))
        return _shown(row)

    async def conversation(self, caller: str, conversation: str, about: Body | None = None) -> Body:
        """Return a conversation's object, after its metadata was replaced, if some is given; errors as in `get`."""
        async with self.engine.write() if about is not None else self.engine.read() as connection:
            row = await conversation_row(connection, caller, conversation)
            if about is not None:
                await connection.execute(
                    update(Conversation).where(Conversation.id == conversation).values(about=about)
                )
                row = {**row, "about": about}
            return _shown(row)

    async def delete_conversation(self, caller: str, conversation: str) -> None:
        """Delete a conversation, with its items and responses; errors as in `get`."""
        async with self.engine.write() as connection:
            await conversation_row(connection, caller, conversation)
            await connection.execute(delete(Conversation).where(Conversation.id == conversation))

    async def add_items(self, caller: str, conversation: str, items: list[Body]) -> None:
        """Put items into a conversation; errors as in `get`."""
        async with self.engine.write() as connection:
            await _begin(connection, caller, conversation)
            place = {"caller": caller, "response": None, "conversation": conversation}
            await insert_items(connection, rows_of(items, is_output=False, **place))

    async def begin(self, caller: str, conversation: str, turn: str) -> None:
        """Begin a turn, which is the conversation's only one until it ends, or its process does; errors as in `get`.

        Raises:
            ConversationLocked: there is one already.
        """
        async with self.engine.write() as connection:
            await _begin(connection, caller, conversation, turn=turn, worker=self.worker)

    async def end(self, conversation: str, turn: str) -> None:
        """End a turn that nothing is stored of. `Store.add` ends one too."""
        where = and_(Conversation.id == conversation, Conversation.turn == turn)
        async with self.engine.write() as connection:
            await connection.execute(update(Conversation).where(where).values(turn=None))

    async def conversation_item(self, caller: str, conversation: str, item: str, *, remove: bool = False) -> Body:
        """Return an item of a conversation, or delete it and return the conversation; errors as in `get`."""
        async with self.engine.write() if remove else self.engine.read() as connection:
            row = await conversation_row(connection, caller, conversation)
            where = and_(Item.conversation == conversation, Item.id == item)
            found = await bodies(connection, where)
            if not found:
                raise missing("item")
            if remove:
                await connection.execute(delete(Item).where(where))
            return _shown(row) if remove else found[-1]


async def insert_items(connection: AsyncConnection, rows: list[Body]) -> None:
    """Store rows of items."""
    if rows:
        await connection.execute(insert(Item), rows)


async def _begin(connection: AsyncConnection, caller: str, conversation: str, **turn: str) -> None:
    """Note that a conversation is used now, and by which turn, if there is none; errors as in `Conversations.begin`."""
    await conversation_row(connection, caller, conversation)
    alive = exists().where(Worker.id == Conversation.worker, Worker.seen_at > await clock(connection) - LOST_AFTER)
    queued = exists().where(Response.conversation == Conversation.id, Response.status.in_(UNFINISHED))
    is_free = and_(or_(Conversation.turn.is_(None), ~alive), ~queued)
    used = update(Conversation).where(Conversation.id == conversation, is_free)
    result: CursorResult[Any] = await connection.execute(used.values(used_at=int(time.time()), **turn))
    if not result.rowcount:
        message = "Another request in this conversation is being answered. Try again when its answer is complete."
        raise ConversationLocked(message, param="conversation", retry_after=1)


async def clock(connection: AsyncConnection) -> float:
    """Return the time by one clock, the database's: those of several machines may differ by seconds."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(await connection.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0)


async def touch(connection: AsyncConnection, conversation: str) -> None:
    """Note that a conversation is used now, and that its turn has ended; raise NotFound if it is gone."""
    used = update(Conversation).where(Conversation.id == conversation).values(used_at=int(time.time()), turn=None)
    result: CursorResult[Any] = await connection.execute(used)
    if not result.rowcount:  # it was deleted meanwhile
        raise missing("conversation", "conversation")


async def conversation_row(connection: AsyncConnection, caller: str, conversation: str) -> Body:
    """Return the row of a caller's conversation, or raise NotFound."""
    where = and_(Conversation.id == conversation, Conversation.caller == caller)
    row = (await connection.execute(select(Conversation.__table__).where(where))).mappings().one_or_none()
    if row is None:
        raise missing("conversation", "conversation")
    return dict(row)


def _shown(row: Body) -> Body:
    return {"id": row["id"], "object": "conversation", "created_at": row["created_at"], "metadata": row["about"]}


async def page(
    connection: AsyncConnection,
    where: ColumnElement[bool],
    *,
    limit: int,
    order: Literal["asc", "desc"],
    after: str | None,
) -> Body:
    """Return a page of items, as a list object."""
    if after:
        furthest = func.max(Item.key) if order == "asc" else func.min(Item.key)  # some upstreams use an id twice
        last = await connection.scalar(select(furthest).where(where, Item.id == after))
        if last is None:
            raise missing("item", "after")
        where = and_(where, Item.key > last if order == "asc" else Item.key < last)
    by = Item.key.asc() if order == "asc" else Item.key.desc()
    found = list(await connection.scalars(select(Item.body).where(where).order_by(by).limit(limit + 1)))
    return listed(found[:limit], has_more=len(found) > limit)


def listed(items: list[Body], *, has_more: bool = False) -> Body:
    """Return a list object."""
    first, last = (items[0].get("id"), items[-1].get("id")) if items else (None, None)
    return {"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more}


async def bodies(connection: AsyncConnection, where: ColumnElement[bool]) -> list[Body]:
    """Return items in their order."""
    return list(await connection.scalars(select(Item.body).where(where).order_by(Item.key)))
