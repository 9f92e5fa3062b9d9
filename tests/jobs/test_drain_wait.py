"""`chorale drain --wait`: what a pod's preStop does before its agent is told to end."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from infra.database import Database, now
from jobs.db.nodes import list_nodes, register
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts
from jobs.scheduler.dispatcher import dispatch
from render.spec import Spec
from tests.support.cli import start, wait_until


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_drain_waits_for_the_nodes_groups(database: Database) -> None:
    with database.write() as connection:
        register(connection, "a", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    items = [BatchItem(row=0, custom_id="0", spec=Spec(prompt="a vase", width=128, height=128))]
    submit(database, items, "q", JobOptions(owner="anna", queue="q", ranks=1))
    assert len(dispatch(database, "a")) == 1
    url = database.engine.url.render_as_string(hide_password=False)
    process = start("drain", "a", "--wait", "600", CHORALE_DATABASE_URL=url)
    try:
        wait_until(lambda: draining(database), 60)
        # It has looked at the node at least once by now, or does next.
        assert process.poll() is None
        with database.write() as connection:
            assert connection.execute(select(attempts.c.id)).scalar_one()
            connection.execute(update(attempts).values(ended=now()))
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "starts no more jobs" in out, errors


def draining(database: Database) -> bool:
    with database.read() as connection:
        return any(node["draining"] for node in list_nodes(connection))
