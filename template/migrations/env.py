"""What Alembic runs: it connects to the service's database, by the same settings, and knows the tables of app/."""

from alembic import context
from sqlalchemy import Connection, text

from app.database.schema import connected
from app.database.tables import Base
from app.environment import load_settings

LOCK = 7_146_402
"""Number of Postgres' advisory lock: several replicas may migrate at the same time, and one does the work."""


def migrate(connection: Connection) -> None:
    """Run what was asked for."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_lock({LOCK})"))
        connection.commit()
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


if given := context.config.attributes.get("connection"):
    migrate(given)
else:  # by the command `alembic`
    import app.own  # noqa: F401 - where the team's tables are

    with connected(load_settings()) as own_connection:
        migrate(own_connection)
