"""What a database can do to us comes as one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from infra.database import Database
from infra.errors import BadSetting, DatabaseUnreachable
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
