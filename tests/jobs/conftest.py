"""The farm's database on both backends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from infra.database import Database
from jobs.db.schema import upgrade
from tests.support.services import postgres_server


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'farm.db'}")
    else:
        database = Database(request.getfixturevalue("postgres_url"))
        with database.write() as connection:
            connection.execute(text("drop schema public cascade; create schema public"))
    upgrade(database)
    yield database
    database.close()
