"""The migrations build what the code expects, on both databases."""

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from infra.database import Database, now
from infra.errors import BadSetting, DatabaseUnreachable
from jobs.db.schema import upgrade
from jobs.db.tables import metadata


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


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_keep_every_prompt_is_refused(postgres_url: str, encoding: str) -> None:
    name = encoding.lower()
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"create database {name} encoding '{encoding}' template template0 locale 'C'")
    database = Database(postgres_url.replace("/postgres", f"/{name}"))
    with pytest.raises(BadSetting, match=f"database_url: .*{name} has the encoding {encoding}; create"):
        upgrade(database)
    database.close()


def test_a_query_that_takes_too_long_is_stopped(database: Database) -> None:
    """It would hold a thread of the board; the next one is answered."""
    slow = "select pg_sleep(3600)"
    if database.engine.dialect.name == "sqlite":
        numbers = "with recursive n(x) as (select 1 union all select x + 1 from n where x < 1e12)"
        slow = f"{numbers} select max(x) from n"
    url = database.engine.url.render_as_string(hide_password=False)
    limited = Database(url, longest_statement_s=0.5)
    for _ in range(2):
        with (
            pytest.raises(DatabaseUnreachable, match=r"took too long for a query .*try again later"),
            limited.read() as connection,
        ):
            connection.execute(text(slow))
        with limited.write() as connection:
            assert connection.execute(text("select 1")).scalar_one() == 1
    limited.close()
