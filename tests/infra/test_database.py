"""What a database can do to us comes as one sentence."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from infra.broker import reach_broker
from infra.database import Database
from infra.errors import BadSetting, BrokerUnreachable, DatabaseUnreachable
from tests.support.services import free_port


@pytest.mark.parametrize("url", ["nonsense", "mysterydb://x", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadSetting, match="database_url"):
        Database(url)


def test_nobody_there_is_said_without_the_password() -> None:
    database = Database(f"postgresql://me:secret@127.0.0.1:{free_port()}/farm")
    with pytest.raises(DatabaseUnreachable, match="does not answer") as caught, database.read() as connection:
        connection.execute(text("select 1"))
    assert "secret" not in str(caught.value) + repr(database)


def test_a_folder_that_is_missing_is_unreachable() -> None:
    database = Database("sqlite:////nowhere/at/all/farm.db")
    with pytest.raises(DatabaseUnreachable), database.write() as connection:
        connection.execute(text("select 1"))


def test_many_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from infra.database import Database; from jobs.db.schema import upgrade; "
        "upgrade(Database(sys.argv[1]))"
    )
    url = f"sqlite:///{tmp_path / 'new.db'}"
    openers = [subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE) for _ in range(5)]
    assert [opener.communicate()[1] for opener in openers] == [b""] * 5


SECRET = "tops3cret"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:1/farm",
        f"postgresql://me:a/{SECRET}@127.0.0.1:1/farm",
        f"postgresql://me:{SECRET}%2Fb@127.0.0.1:1/farm",
        f"postgresql://me:a@{SECRET}@127.0.0.1:1/farm",
        f"postgresql://me/x:{SECRET}@127.0.0.1:1/farm",
        f"postgresql://me:1/{SECRET}@127.0.0.1:1/farm",
        f"postgresql://127.0.0.1:1/farm?user=me&password={SECRET}",
        f"postgresql://me@127.0.0.1:1/farm?sslpassword={SECRET}",
        f"postgresql:///farm?host=127.0.0.1&port=1&passfile={SECRET}",
        f"postgresql://me:{SECRET}@127.0.0.1:port/farm",
        f"mysql://me:{SECRET}@127.0.0.1/farm",
    ],
)
def test_no_form_of_a_url_shows_its_password(url: str) -> None:
    def use() -> None:
        database = Database(url)
        assert SECRET not in repr(database)
        with database.read() as connection:
            connection.execute(text("select 1"))

    with pytest.raises((BadSetting, DatabaseUnreachable)) as caught:
        use()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:a/{SECRET}@127.0.0.1:1/0",
        f"redis://:1/{SECRET}@127.0.0.1:1/0",
        f"amqp://me:{SECRET}/b@127.0.0.1:1//",
        f"redis://:a#{SECRET}@127.0.0.1:1/0",
        f"redis://127.0.0.1:1/0?password={SECRET}",
        f"redis://:a@{SECRET}@127.0.0.1:1/0",
    ],
)
def test_no_form_of_a_brokers_url_shows_its_password(url: str) -> None:
    with pytest.raises((BadSetting, BrokerUnreachable)) as caught:
        reach_broker(url)
    assert SECRET not in str(caught.value)


def test_every_error_of_the_driver_is_the_databases_or_a_mistake_of_ours() -> None:
    database, passed = Database("sqlite://"), set()
    for error in vars(psycopg.errors).values():
        state = getattr(error, "sqlstate", None)
        if not isinstance(error, type) or not issubclass(error, psycopg.Error) or state is None:
            continue
        try:
            with database.read():
                raise DBAPIError.instance("select", {}, error("a reason"), psycopg.Error)
        except DatabaseUnreachable:
            continue
        except DBAPIError:
            passed.add(state if state.startswith("42") else state[:2])
    for state in ("25006", "25P02", "40001", "53100", "57P01", "58030", "XX001", "42501", "42P01"):
        assert state not in passed and state[:2] not in passed, state
    # Values, constraints, and statements that are wrong: a retry would not help.
    assert {"22", "23", "42601"} <= passed


def test_a_file_that_is_replaced_is_opened_anew(tmp_path: Path) -> None:
    """A restored copy: whoever holds the old file open would go on with what nobody else sees."""
    path = tmp_path / "home" / "farm.db"
    path.parent.mkdir()
    database = Database(f"sqlite:///{path}")

    def names() -> list[str]:
        with database.read() as connection:
            return list(connection.execute(text("select name from sqlite_master")).scalars())

    with database.write() as connection:
        connection.execute(text("create table old (x)"))
    shutil.rmtree(path.parent)
    with pytest.raises(DatabaseUnreachable, match="unable to open"):
        names()
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("create table new (x)")
    assert names() == ["new"]
    database.close()


@pytest.mark.parametrize(
    ("state", "text", "sentence"),
    [
        ("53100", "could not extend file: No space left on device", "has no space on its disk .*; free some"),
        ("53300", "too many connections for role", "has no connection left .*; raise its max_connections"),
        (None, "FATAL:  sorry, too many clients already", "has no connection left"),
        ("25006", "cannot execute UPDATE in a read-only transaction", "only reads .* may be a replica"),
        ("55P03", "canceling statement due to lock timeout", "took too long for a query"),
        ("40P01", "deadlock detected", "for the same rows by others at once .*; try again"),
        ("XX001", "invalid page in block 0", "is damaged .* restore a backup"),
        ("57P03", "the database system is starting up", "does not answer .*; check CHORALE_DATABASE_URL"),
        (None, "failed to resolve host 'db.example'", "does not answer"),
    ],
)
def test_what_is_the_matter_is_told_with_its_fix(state: str | None, text: str, sentence: str) -> None:
    error = psycopg.OperationalError(text)
    error.sqlstate = state
    with pytest.raises(DatabaseUnreachable, match=sentence), Database("sqlite://").read():
        raise DBAPIError.instance("select", {}, error, psycopg.Error)


def test_sqlite_s_own_errors_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "farm.db"
    database = Database(f"sqlite:///{path}")

    def fill() -> None:
        with database.write() as connection:
            connection.execute(text("pragma max_page_count = 3"))
            for _ in range(100):
                connection.execute(text("insert into one values (zeroblob(4096))"))

    with database.write() as connection:
        connection.execute(text("create table one (x)"))
    with pytest.raises(DatabaseUnreachable, match="has no space on its disk"):
        fill()
    database.close()
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(DatabaseUnreachable, match=r"is damaged .* restore a backup"), database.write():
        pass
    database.close()
