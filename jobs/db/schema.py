"""Upgrades a database to the schema of this version."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from infra.database import Database

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x63686F72
"""Number of the advisory lock on PostgreSQL; on SQLite writers are exclusive anyway."""


def upgrade(database: Database) -> None:
    """Run the missing migrations. Safe when there are none and when several nodes do it at once."""
    if _is_current(database):
        return
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            # A large table takes longer to change than a query of a board may.
            connection.execute(text("set local statement_timeout = 0"))
            connection.execute(text("select pg_advisory_xact_lock(:number)"), {"number": _LOCK})
        command.upgrade(config_for(connection), "head")


def _is_current(database: Database) -> bool:
    """Checked without a lock, so that a reader never waits for a writer only to find nothing to do."""
    with database.read() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        script = ScriptDirectory.from_config(config_for(connection))
    if found is None or found == script.get_current_head():
        return found is not None
    # An unknown revision comes from a newer version. During an upgrade two versions work side by side;
    # migrations only add, so the older version continues.
    return found not in {revision.revision for revision in script.walk_revisions()}


def config_for(connection: Connection) -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config
