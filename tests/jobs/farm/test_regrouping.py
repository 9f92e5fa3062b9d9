"""A job that runs takes in the slots of a node that comes later, and goes on without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select, update

from infra.database import Database
from jobs.db.rates import record_rate
from jobs.db.tables import jobs
from tests.support.cli import wait_until
from tests.support.machines import Machines
from tests.support.oracle import roots_of

SPEC = {"prompt": "a vase", "seed": 3, "width": 256, "height": 256, "steps": 200, "dtype": "float32"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("drained", [True, False])
def test_a_running_job_takes_in_another_node(tmp_path: Path, drained: bool) -> None:
    url = f"sqlite:///{tmp_path / 'farm.db'}"
    farm, database = Machines(tmp_path, url, CHORALE_REGROUP_GAIN_S="1"), Database(url)

    def log() -> str:
        return "".join(each.read_text() for each in farm.logs().glob(f"{job}-*"))

    try:
        farm.boot("n1")
        (tmp_path / "job.jsonl").write_text(json.dumps(SPEC))
        job = farm.call("submit", str(tmp_path / "job.jsonl"), "--ranks", "1")["jobs"][0]["id"]
        farm.wait("rendering")
        with database.write() as connection:
            connection.execute(update(jobs).values(most_ranks=3))
            work = connection.execute(select(jobs.c.work)).scalar_one()
            record_rate(connection, "builtin", "cpu", work, 3600.0)
        farm.boot("n2", slots=2)
        wait_until(lambda: "continues with 3 ranks" in log(), 300)
        if drained:
            farm.call("drain", "n2")
            wait_until(lambda: "continues with 1 rank" in log(), 300)
        done = farm.wait("done", 900)
        assert done["root"] == roots_of({job: SPEC}, tmp_path)[job]
        (attempt,) = done["attempts_made"]
        ranks = [each["ranks"] for each in attempt["ranks"]]
        assert ranks == ([1, 3, 1] if drained else [1, 3])
        assert (done["attempts"], done["losses"]) == (0, 0)
        wait_until(lambda: not [node for node in farm.call("nodes")["nodes"] if node["used"]], 60)
    finally:
        farm.shut_down()
        database.close()
