"""An agent that is asked to begin anew does so in its own process, and its node takes jobs again."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.database import Database
from jobs.db.node_changes import change_node
from jobs.db.nodes import list_nodes
from jobs.db.schema import upgrade
from jobs.db.tables import nodes
from tests.support.cli import start, wait_until

WORDS = ("agent", "--name", "n1", "--slots", "3", "--tag", "a100", "--metrics-address", "off")


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'farm.db'}")
    upgrade(database)
    yield database
    database.close()


def started(farm: Database, tmp_path: Path) -> subprocess.Popen[str]:
    with (tmp_path / "agent.log").open("w") as log:
        url = farm.engine.url.render_as_string(hide_password=False)
        return start(*WORDS, log=log, CHORALE_DATABASE_URL=url, XDG_DATA_HOME=str(tmp_path))


def agent(farm: Database) -> str | None:
    with farm.read() as connection:
        return connection.execute(select(nodes.c.agent).where(nodes.c.up_since.is_not(None))).scalar()


@pytest.mark.slow
def test_a_node_restarts_with_its_options_and_stays_the_same_process(farm: Database, tmp_path: Path) -> None:
    process = started(farm, tmp_path)
    try:
        first = wait_until(lambda: agent(farm))
        with farm.write() as connection:
            change_node(connection, "n1", "me", restart=True)
        second = wait_until(lambda: (found := agent(farm)) != first and found)
        assert second.partition("-")[0] == first.partition("-")[0] == str(process.pid)
        with farm.read() as connection:
            (node,) = list_nodes(connection)
        assert (node["state"], node["slots"], node["tags"]) == ("up", 3, ["a100"])
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "agent.log").read_text()


def test_a_node_that_is_stopped_while_it_restarts_stays_stopped(farm: Database, tmp_path: Path) -> None:
    process = started(farm, tmp_path)
    try:
        wait_until(lambda: agent(farm))
        with farm.write() as connection:
            change_node(connection, "n1", "me", restart=True)
            # By now the agent waits for this transaction, to learn of the restart after the signal.
            time.sleep(2)
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (tmp_path / "agent.log").read_text()
    finally:
        process.kill()
        process.wait()
