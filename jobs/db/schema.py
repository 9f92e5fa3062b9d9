"""Brings a database to the schema that this version of the code wants."""

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
"""Number of PostgreSQL's advisory lock; SQLite's writers are alone anyway."""


def upgrade(database: Database) -> None:
    """Run the migrations that are missing; harmless when there are none, and when several nodes do it."""
    if _is_current(database):
        return
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("select pg_advisory_xact_lock(:number)"), {"number": _LOCK})
        command.upgrade(config_for(connection), "head")


def _is_current(database: Database) -> bool:
    """Looked up without a lock, so that a reader never waits for a writer only to find nothing to do."""
    with database.read() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        script = ScriptDirectory.from_config(config_for(connection))
    if found is None or found == script.get_current_head():
        return found is not None
    # Unknown to us: a newer version has been here. While a farm is upgraded, two versions work side by side;
    # migrations only ever add, and the older version goes on.
    return found not in {revision.revision for revision in script.walk_revisions()}


def config_for(connection: Connection) -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config
