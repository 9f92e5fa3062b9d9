"""An agent that is asked to begin anew does so in its own process, and its node takes jobs again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.database import Database
from jobs.db.node_changes import change_node
from jobs.db.nodes import list_nodes
from jobs.db.schema import upgrade
from jobs.db.tables import nodes
from tests.support.cli import start, wait_until


@pytest.mark.slow
def test_a_node_restarts_with_its_options_and_stays_the_same_process(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'farm.db'}")
    upgrade(database)

    def agent() -> str | None:
        with database.read() as connection:
            return connection.execute(select(nodes.c.agent).where(nodes.c.up_since.is_not(None))).scalar()

    words = ("agent", "--name", "n1", "--slots", "3", "--tag", "a100", "--metrics-address", "off")
    with (tmp_path / "agent.log").open("w") as log:
        url = database.engine.url.render_as_string(hide_password=False)
        process = start(*words, log=log, CHORALE_DATABASE_URL=url, XDG_DATA_HOME=str(tmp_path))
    try:
        first = wait_until(agent)
        with database.write() as connection:
            change_node(connection, "n1", "me", restart=True)
        second = wait_until(lambda: (found := agent()) != first and found)
        assert second.partition("-")[0] == first.partition("-")[0] == str(process.pid)
        with database.read() as connection:
            (node,) = list_nodes(connection)
        assert (node["state"], node["slots"], node["tags"]) == ("up", 3, ["a100"])
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "agent.log").read_text()
        database.close()
