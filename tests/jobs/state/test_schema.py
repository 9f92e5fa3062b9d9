"""The migrations build what the code expects, on both databases."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from infra.database import Database, now
from jobs.state.schema import upgrade
from jobs.state.tables import metadata


def test_migrations_and_tables_agree(database: Database) -> None:
    def is_a_table_of_ours(name: str | None, kind: str, parents: object) -> bool:
        # The search's own index is another thing on each database, and none that SQLAlchemy knows.
        return not (name or "").startswith(("job_words", "ix_jobs_words"))

    with database.write() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": is_a_table_of_ours})
        assert compare_metadata(context, metadata) == []


def test_upgrading_twice_is_harmless(database: Database) -> None:
    upgrade(database)


def test_an_older_version_works_on_a_newer_ones_database(database: Database) -> None:
    """While a farm is upgraded, agents of both versions come and go."""
    with database.write() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    upgrade(database)
    with database.read() as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalar_one() == "9999"


def test_the_clock_is_the_databases_and_moves(database: Database) -> None:
    with database.read() as connection:
        first = connection.execute(select(now())).scalar_one()
        second = connection.execute(select(now())).scalar_one()
    assert 1.7e9 < first <= second < first + 60
