"""Responses, conversations, their items and events, and the workers that answer in the background."""

import sqlalchemy as sa
from alembic import op

revision = "template_1"
down_revision = None
branch_labels = ("template",)
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "kept_conversations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("caller", sa.String(), nullable=False),
        sa.Column("created_at", INTEGER, nullable=False),
        sa.Column("used_at", INTEGER, nullable=False),
        sa.Column("about", sa.JSON(), nullable=False),
        sa.Column("turn", sa.String(), nullable=True),
        sa.Column("worker", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_kept_conversations"),
    )
    op.create_index("ix_kept_conversations_used_at", "kept_conversations", ["used_at"])
    op.create_table(
        "kept_responses",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("caller", sa.String(), nullable=False),
        sa.Column("created_at", INTEGER, nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("previous", sa.String(), nullable=True),
        sa.Column("conversation", sa.String(), nullable=True),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=True),
        sa.Column("is_streamed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("is_queued", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("attempt", INTEGER, server_default="0", nullable=False),
        sa.Column("interruptions", INTEGER, server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_kept_responses"),
        sa.ForeignKeyConstraint(
            ["conversation"], ["kept_conversations.id"], "fk_kept_responses_conversation", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_kept_responses_conversation", "kept_responses", ["conversation"])
    op.create_index("ix_kept_responses_created_at", "kept_responses", ["created_at"])
    unfinished = sa.text("status IN ('queued', 'in_progress')")
    op.create_index(
        "ix_kept_responses_status",
        "kept_responses",
        ["status"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
    op.create_table(
        "kept_items",
        sa.Column("key", INTEGER, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("caller", sa.String(), nullable=False),
        sa.Column("response", sa.String(), nullable=True),
        sa.Column("conversation", sa.String(), nullable=True),
        sa.Column("is_output", sa.Boolean(), nullable=False),
        sa.Column("size", INTEGER, nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_kept_items"),
        sa.ForeignKeyConstraint(["response"], ["kept_responses.id"], "fk_kept_items_response", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["conversation"], ["kept_conversations.id"], "fk_kept_items_conversation", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_kept_items_caller_id", "kept_items", ["caller", "id"])
    op.create_index("ix_kept_items_response", "kept_items", ["response"])
    op.create_index("ix_kept_items_conversation", "kept_items", ["conversation"])
    op.create_table(
        "kept_events",
        sa.Column("response", sa.String(), nullable=False),
        sa.Column("number", INTEGER, nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("response", "number", name="pk_kept_events"),
        sa.ForeignKeyConstraint(["response"], ["kept_responses.id"], "fk_kept_events_response", ondelete="CASCADE"),
    )
    op.create_table(
        "kept_workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_kept_workers"),
    )


def downgrade() -> None:
    """Drop the tables, with what is in them."""
    for table in ("kept_workers", "kept_events", "kept_items", "kept_responses", "kept_conversations"):
        op.drop_table(table)
