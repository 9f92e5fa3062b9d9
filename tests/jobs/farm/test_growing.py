"""A job of a farm takes free slots while it renders and gives them back; all have one rank's root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from infra.database import Database
from jobs.db.rates import record_rate
from jobs.db.tables import jobs
from tests.support.cli import wait_until
from tests.support.machines import Machines
from tests.support.oracle import roots_of

LONG = {"prompt": "a vase", "seed": 3, "width": 256, "height": 256, "steps": 200, "dtype": "float32"}
SHORT = {"prompt": "a cup", "seed": 4, "width": 128, "height": 128, "steps": 20, "dtype": "float32"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_grows_from_one_rank_to_four_and_makes_room_for_another(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'farm.db'}"
    farm, database = Machines(tmp_path, url, CHORALE_REGROUP_GAIN_S="3"), Database(url)
    try:
        farm.boot("n1", slots=4)
        long = submit(farm, tmp_path, LONG, 1)
        farm.wait("rendering")
        with database.write() as connection:
            connection.execute(update(jobs).values(most_ranks=4))
            work = connection.execute(select(jobs.c.work)).scalar_one()
            record_rate(connection, "builtin", "cpu", work, 3600.0)
        wait_until(lambda: "continues with 4 ranks" in log_of(farm, long), 600)
        short = submit(farm, tmp_path, SHORT, 2)
        wait_until(lambda: shown(farm, short)["state"] == "done", 600)
        wait_until(lambda: shown(farm, long)["state"] == "done", 900)
        roots = roots_of({long: LONG, short: SHORT}, tmp_path)
        for job, root in roots.items():
            row = shown(farm, job)
            assert row["root"] == root
            assert (row["attempts"], row["losses"], len(row["attempts_made"])) == (0, 0, 1)
        ranks = [each["ranks"] for each in shown(farm, long)["attempts_made"][0]["ranks"]]
        assert ranks[:2] == [1, 4] and 2 in ranks[2:]
        began = min(event["time"] for event in shown(farm, short)["events"] if event["new"] == "rendering")
        assert began < shown(farm, long)["ended"], "the other job has waited for no end"
    finally:
        farm.shut_down()
        database.close()


def submit(farm: Machines, folder: Path, spec: dict[str, Any], ranks: int) -> str:
    (folder / "job.jsonl").write_text(json.dumps(spec))
    return str(farm.call("submit", str(folder / "job.jsonl"), "--ranks", str(ranks))["jobs"][0]["id"])


def shown(farm: Machines, job: str) -> dict[str, Any]:
    return farm.call("show", job)


def log_of(farm: Machines, job: str) -> str:
    return "".join(each.read_text() for each in farm.logs().glob(f"{job}-*"))
