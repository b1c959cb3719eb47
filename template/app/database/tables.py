"""The tables. Those of the team's own derive from `Base` too, anywhere in the team's code."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, Integer, MetaData, false, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
"""Names of constraints, so that a migration can name what it drops."""


UNFINISHED = text("status IN ('queued', 'in_progress')")
"""What the index of unfinished answers has in it: few rows of many."""


class Base(DeclarativeBase):
    """What every table derives from."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy declares it so
        dict[str, Any]: JSON,
        int: BigInteger().with_variant(Integer, "sqlite"),  # whose keys count by themselves only as this
        float: Double,
    }


class Conversation(Base):
    """A conversation of a caller's. Times are seconds since 1970, here and below.

    Attributes:
        turn: the request that is being answered in it, whose answer is stored when it is complete.
        worker: the process that answers it. When that has ended, the turn has too.
    """

    __tablename__ = "kept_conversations"

    id: Mapped[str] = mapped_column(primary_key=True)
    caller: Mapped[str]
    created_at: Mapped[int]
    used_at: Mapped[int] = mapped_column(index=True)
    about: Mapped[dict[str, Any]]
    turn: Mapped[str | None]
    worker: Mapped[str | None]


class Response(Base):
    """An answer: the response object but for its output, which is items.

    Attributes:
        previous: id of the response that it goes on from.
        request: what was asked, but for the input; of answers in the background alone.
        is_streamed: whether its events are kept.
        is_queued: whether its job has been handed to the queue.
        attempt: how often a worker has begun with it. What an earlier attempt says later is not taken.
        interruptions: how many of the attempts ended with their process.
    """

    __tablename__ = "kept_responses"
    __table_args__ = (
        Index("ix_kept_responses_created_at", "created_at"),
        Index("ix_kept_responses_status", "status", sqlite_where=UNFINISHED, postgresql_where=UNFINISHED),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    caller: Mapped[str]
    created_at: Mapped[int]
    status: Mapped[str]
    previous: Mapped[str | None]
    conversation: Mapped[str | None] = mapped_column(ForeignKey(Conversation.id, ondelete="CASCADE"), index=True)
    body: Mapped[dict[str, Any]]
    request: Mapped[dict[str, Any] | None]
    is_streamed: Mapped[bool] = mapped_column(server_default=false())
    is_queued: Mapped[bool] = mapped_column(server_default=false())
    attempt: Mapped[int] = mapped_column(server_default="0")
    interruptions: Mapped[int] = mapped_column(server_default="0")


class Item(Base):
    """An item of an input or an output, or one that was put into a conversation; each stands here once.

    Attributes:
        key: its place among all items.
        size: length of its JSON text.
    """

    __tablename__ = "kept_items"
    __table_args__ = (Index("ix_kept_items_caller_id", "caller", "id"),)

    key: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    caller: Mapped[str]
    response: Mapped[str | None] = mapped_column(ForeignKey(Response.id, ondelete="CASCADE"), index=True)
    conversation: Mapped[str | None] = mapped_column(ForeignKey(Conversation.id, ondelete="CASCADE"), index=True)
    is_output: Mapped[bool]
    size: Mapped[int]
    body: Mapped[dict[str, Any]]


class Event(Base):
    """An event of an answer in the background, as a client gets it."""

    __tablename__ = "kept_events"

    response: Mapped[str] = mapped_column(ForeignKey(Response.id, ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[dict[str, Any]]


class Worker(Base):
    """A process that makes answers in the background, and when it was last seen."""

    __tablename__ = "kept_workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    seen_at: Mapped[float]
