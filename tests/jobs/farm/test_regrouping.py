"""A job that runs goes on with the slots of a node that comes later, and has the root of one rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.database import Database
from jobs.db.rates import record_rate
from jobs.db.tables import attempts, jobs, members
from tests.support.cli import wait_until
from tests.support.machines import Machines
from tests.support.oracle import roots_of

SPEC = {"prompt": "a vase", "seed": 3, "width": 256, "height": 256, "steps": 150, "dtype": "float32"}


@pytest.mark.slow
def test_a_running_job_goes_on_with_the_slots_of_another_node(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'farm.db'}"
    farm, database = Machines(tmp_path, url, CHORALE_REGROUP_GAIN_S="1"), Database(url)
    try:
        farm.boot("n1")
        (tmp_path / "job.jsonl").write_text(json.dumps(SPEC))
        job = farm.call("submit", str(tmp_path / "job.jsonl"))["jobs"][0]["id"]
        farm.wait("rendering")
        with database.write() as connection:
            work = connection.execute(select(jobs.c.work)).scalar_one()
            record_rate(connection, "builtin", "cpu", work, 3600.0)
        farm.boot("n2")
        wait_until(lambda: _ranks(database) == [1, 2], 300)
        assert farm.wait("done", 600)["root"] == roots_of({job: SPEC}, tmp_path)[job]
        row = farm.job()
        assert (row["attempts"], row["losses"]) == (0, 0), "a regrouping is no failure"
    finally:
        farm.shut_down()
        database.close()


def _ranks(database: Database) -> list[int]:
    """The ranks of each attempt, the first one first."""
    with database.read() as connection:
        rows = connection.execute(
            select(attempts.c.id, members.c.slots)
            .join(members, members.c.attempt == attempts.c.id)
            .order_by(attempts.c.created)
        ).all()
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.id] = counts.get(row.id, 0) + len(row.slots)
    return list(counts.values())
