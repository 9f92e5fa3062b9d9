"""The migrations build what the code expects, on both databases."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

from infra.database import Database, now
from jobs.state.schema import upgrade
from jobs.state.tables import metadata


def test_migrations_and_tables_agree(database: Database) -> None:
    with database.write() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_upgrading_twice_is_harmless(database: Database) -> None:
    upgrade(database)


def test_the_clock_is_the_databases_and_moves(database: Database) -> None:
    with database.read() as connection:
        first = connection.execute(select(now())).scalar_one()
        second = connection.execute(select(now())).scalar_one()
    assert 1.7e9 < first <= second < first + 60
