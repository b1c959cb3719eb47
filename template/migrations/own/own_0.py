"""The beginning of the team's migrations. Template updates put nothing into this folder."""

revision = "own_0"
down_revision = None
branch_labels = ("own",)
depends_on = None


def upgrade() -> None:
    """Nothing yet."""


def downgrade() -> None:
    """Nothing."""
