"""A node that cannot work takes itself out, burns no job, and comes back; real agents on one machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select

from infra.database import Database
from infra.errors import ServiceError
from jobs.db.nodes import list_nodes
from jobs.db.queries import show_job
from jobs.db.submission import BatchItem, JobOptions
from jobs.db.submission import submit as submit_batch
from jobs.db.tables import entries, nodes
from jobs.scheduler.pending_reason import pending_reason
from render.spec import Spec
from tests.support.cli import chorale, start, wait_until
from tests.support.machines import Machines

BALLAST = 400 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the home, so that it can be full."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={BALLAST}", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def machines(database: Database, disk: Path, tmp_path: Path) -> Iterator[Machines]:
    url = database.engine.url.render_as_string(hide_password=False)
    made = Machines(disk, url, CHORALE_STORE_URL=f"file://{tmp_path / 'store'}")
    yield made
    made.shut_down()


def node(database: Database) -> dict[str, Any]:
    """The only node; commands would take seconds."""
    with database.read() as connection:
        found = list_nodes(connection)
    return found[0] if found else {"state": "none", "problems": []}


def submit(database: Database, seed: int) -> str:
    spec = Spec(prompt="a red vase on marble", seed=seed, width=128, height=128, steps=1)
    batch = submit_batch(
        database, [BatchItem(row=1, custom_id="1", spec=spec)], "test", JobOptions(owner="me")
    )
    with database.read() as connection:
        return str(
            connection.execute(select(entries.c.job).where(entries.c.batch == batch.batch)).scalar_one()
        )


def show(database: Database, job: str) -> dict[str, Any]:
    with database.read() as connection:
        return show_job(connection, job) | {"waits_for": pending_reason(connection, job)}


def wait_done(database: Database, job: str) -> dict[str, Any]:
    wait_until(lambda: show(database, job)["state"] == "done", 120)
    return show(database, job)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_node_without_room_row_or_home_recovers_and_its_jobs_are_done(
    machines: Machines, disk: Path, database: Database
) -> None:
    machines.boot("n1")
    assert wait_done(database, submit(database, 1))["fence"] == 1

    # An older state of the database is restored, in which there was no such node.
    with database.write() as connection:
        connection.exec_driver_sql("delete from members")
        connection.execute(delete(nodes))
    wait_until(lambda: node(database)["state"] == "up")
    assert "registered again" in (machines.home / "n1.log").read_text()

    # The disk is full.
    with pytest.raises(OSError, match="No space"), (disk / "ballast").open("wb") as file:
        file.write(bytes(BALLAST))
    wait_until(lambda: node(database)["state"] == "unhealthy")
    (problem,) = node(database)["problems"]
    assert problem["check"] == "home" and str(disk) in problem["text"]
    waiting = submit(database, 2)
    assert "make room" in show(database, waiting)["waits_for"]
    (disk / "ballast").unlink()
    found = wait_done(database, waiting)
    assert (found["fence"], found["attempts"], found["losses"]) == (1, 0, 0), "the node was not tried"

    # Its home is deleted.
    shutil.rmtree(machines.logs().parent)
    found = wait_done(database, submit(database, 3))
    assert (found["attempts"], found["losses"]) == (0, 0)
    assert "Traceback" not in (machines.home / "n1.log").read_text()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_temporary_folder_too_long_for_sockets_and_a_name_that_is_taken_are_told(
    machines: Machines, database: Database
) -> None:
    long = machines.home / ("x" * 90)
    long.mkdir()
    machines.environment["TMPDIR"] = str(long)
    machines.boot("n1")
    (problem,) = node(database)["problems"]
    assert problem["check"] == "temporary" and "set TMPDIR to a shorter one" in problem["text"]
    job = show(database, submit(database, 1))
    assert (job["state"], job["fence"]) == ("queued", 0)

    second = start("agent", "--name", "n1", "--slots", "1", **machines.environment)
    _, answer = second.communicate(timeout=60)
    assert second.returncode == 2 and "is the name of a running agent at 127.0.0.2" in answer
    assert node(database)["up"]


def answered(database: Database) -> str | None:
    """The state of the only node, None while there is no database."""
    try:
        return str(node(database)["state"])
    except ServiceError:
        return None


def test_a_farm_whose_data_folder_is_deleted_takes_new_jobs_and_has_its_home_for_itself(
    tmp_path: Path,
) -> None:
    home = {"XDG_DATA_HOME": str(tmp_path), "CHORALE_NODE": "n1"}
    farm = start("up", "--slots", "1", "--port", "0", **home)
    try:
        path = tmp_path / "chorale" / "farm.db"
        wait_until(path.exists)
        database = Database(f"sqlite:///{path}")
        wait_until(lambda: answered(database) == "up")
        second = start("up", "--slots", "1", "--port", "0", **home)
        _, answer = second.communicate(timeout=60)
        assert second.returncode == 2 and "in use by another chorale up" in answer
        shutil.rmtree(tmp_path / "chorale")
        wait_until(lambda: answered(database) == "up")
        assert wait_done(database, submit(database, 1))["losses"] == 0
    finally:
        farm.terminate()
        farm.communicate(timeout=60)


def test_a_port_that_is_taken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        finished = chorale("up", "--port", port)
    assert finished.returncode == 2 and f"port: {port} is not available" in finished.stderr
