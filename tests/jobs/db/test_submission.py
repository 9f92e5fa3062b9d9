"""The same image items for twice is one job."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from infra.database import Database
from jobs.db.board_queries import is_known_folder
from jobs.db.state_machine import change_state
from jobs.db.submission import LEAST_USE, BatchItem, JobOptions, Receipt, submit, useful_ranks
from jobs.db.tables import entries, events, jobs
from jobs.simulation.workload import ModelTimes
from render.models import resolve_model
from render.plan.plan import make_plan
from render.spec import Spec

OPTIONS = JobOptions(owner="me", queue="night")


def items(count: int, first: int = 0) -> list[BatchItem]:
    return [
        BatchItem(row=number, custom_id=f"c{number}", spec=Spec(prompt="a red vase", seed=number))
        for number in range(first, first + count)
    ]


def submit_items(database: Database, wanted: list[BatchItem], options: JobOptions = OPTIONS) -> Receipt:
    return submit(database, wanted, "catalog", options)


def count(database: Database, table: object) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()  # type: ignore[arg-type]


def test_a_batch_becomes_queued_jobs(database: Database) -> None:
    receipt = submit_items(database, items(1000))
    assert (receipt.new, receipt.known, receipt.done) == (1000, 0, 0)
    assert count(database, jobs) == count(database, entries) == count(database, events) == 1000
    with database.read() as connection:
        row = connection.execute(select(jobs).limit(1)).one()
    assert (row.state, row.queue, row.owner, row.fence) == ("queued", "night", "me", 0)
    assert row.id == row.digest[:16]


def test_asking_again_adds_only_what_is_new(database: Database) -> None:
    first = submit_items(database, items(10))
    with database.read() as connection:
        one = connection.execute(select(jobs.c.id).limit(1)).scalar_one()
    with database.write() as connection:
        for old, new in (("queued", "placing"), ("placing", "rendering"), ("rendering", "publishing")):
            change_state(connection, one, old, new, "")
        change_state(connection, one, "publishing", "done", "")
    second = submit_items(database, items(12))
    assert (second.new, second.known, second.done) == (2, 10, 1)
    assert second.batch != first.batch
    assert (count(database, jobs), count(database, entries)) == (12, 22)


def test_one_image_twice_in_a_batch_is_one_job(database: Database) -> None:
    same = [BatchItem(row=row, custom_id=f"c{row}", spec=Spec(prompt="a red vase")) for row in range(3)]
    assert submit_items(database, same).new == 1
    assert (count(database, jobs), count(database, entries)) == (1, 3)


def test_a_cancelled_image_that_is_asked_for_again_is_queued_again(database: Database) -> None:
    submit_items(database, items(1))
    with database.write() as connection:
        job = connection.execute(select(jobs.c.id)).scalar_one()
        change_state(connection, job, "queued", "cancelled", "not wanted")
    submit_items(database, items(1))
    with database.read() as connection:
        assert connection.execute(select(jobs.c.state)).scalar_one() == "queued"


def test_large_pictures_may_have_more_ranks(database: Database) -> None:
    large = BatchItem(row=1, custom_id="l", spec=Spec(prompt="x", width=2048, height=2048))
    small = BatchItem(row=2, custom_id="s", spec=Spec(prompt="x", width=128, height=128))
    submit_items(database, [large, small])
    with database.read() as connection:
        rows = connection.execute(select(jobs.c.spec, jobs.c.least_ranks, jobs.c.most_ranks)).all()
    ranks = {row.spec["width"]: (row.least_ranks, row.most_ranks) for row in rows}
    assert ranks == {2048: (1, 19), 128: (1, 1)}


@pytest.mark.parametrize(("side", "most"), [(1024, 2), (2048, 3), (4096, 7), (8192, 21)])
def test_a_group_is_no_larger_than_it_makes_use_of(side: int, most: int) -> None:
    info = ModelTimes(evaluation_s=1.0).info  # of SDXL's shape
    spec = Spec(prompt="x", width=side, height=side, steps=25)
    assert useful_ranks(spec, info) == most
    plans = {ranks: make_plan(spec, info, ranks) for ranks in (1, most - 1, most)}
    calls = {ranks: plan.model_calls for ranks, plan in plans.items()}
    assert calls[most] < calls[most - 1], "the last rank gains something"
    assert calls[1] >= LEAST_USE * most * calls[most]


def test_a_fixed_number_of_ranks_is_a_gang(database: Database) -> None:
    submit_items(database, items(1), JobOptions(owner="me", ranks=3))
    with database.read() as connection:
        row = connection.execute(select(jobs)).one()
    assert (row.least_ranks, row.most_ranks, row.queue) == (3, 3, "default")


def test_a_relative_model_is_resolved_when_its_job_is_submitted(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(resolve_model("builtin"), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    submit_items(database, [BatchItem(row=1, custom_id="a", spec=Spec(prompt="x", model="./model"))])
    with database.read() as connection:
        row = connection.execute(select(jobs)).one()
    assert row.model == row.spec["model"] == str(tmp_path / "model")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_submitters_who_start_together_on_a_new_farm_count_each_image_once(database: Database) -> None:
    wanted, together = items(50), threading.Barrier(4)

    def submit_together(_: int) -> Receipt:
        other = Database(database.engine.url.render_as_string(hide_password=False))
        with other.read() as connection:
            connection.execute(select(1))
        together.wait()
        try:
            return submit_items(other, wanted)
        finally:
            other.close()

    with ThreadPoolExecutor(4) as pool:
        receipts = list(pool.map(submit_together, range(4)))
    assert sorted(receipt.new for receipt in receipts) == [0, 0, 0, 50]
    assert sum(receipt.known for receipt in receipts) == 150


def test_a_folder_is_known_whichever_part_of_a_job_it_was(database: Database, tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("edges", "depth", 'a "folder"')]
    networks = [{"path": path, "digest": str(number) * 64} for number, path in enumerate(folders)]
    submit_items(database, items(3))
    with database.write() as connection:
        job, spec = connection.execute(select(jobs.c.id, jobs.c.spec).limit(1)).one()
        changed = update(jobs).where(jobs.c.id == job)
        connection.execute(changed.values(spec=spec | {"controlnet": networks}))
    with database.read() as connection:
        assert all(is_known_folder(connection, "controlnet", path) for path in folders)
        # Another folder, one of another field, a beginning, and what no database takes.
        for path in (str(tmp_path), f"{folders[0]}/x", "edges", "", "a\0b", "caf\udce9", "%", '"]}'):
            assert not is_known_folder(connection, "controlnet", path)
        assert not is_known_folder(connection, "lora", folders[0])
