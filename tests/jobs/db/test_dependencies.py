"""Jobs that start when others have ended, as Slurm's afterok and afterany."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from infra.database import Database
from jobs.db.commands import apply_command
from jobs.db.dependencies import is_free, let_start, release, show_dependency, waits_for
from jobs.db.find_predecessors import MAX_PREDECESSORS, find_predecessors
from jobs.db.nodes import register
from jobs.db.queues import queue_needs
from jobs.db.schema import upgrade
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, Receipt, submit
from jobs.db.tables import batches, jobs
from jobs.estimate import estimate
from jobs.scheduler.capacity import find_impossible_jobs
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.pending_reason import pending_reason
from render.errors import BadInput
from render.spec import Spec


def submit_seeds(farm: Database, *seeds: int, after: str = "", after_any: str = "") -> Receipt:
    specs = {seed: Spec(prompt="a vase", seed=seed, width=128, height=128) for seed in seeds}
    items = [BatchItem(row=seed, custom_id=f"c{seed}", spec=spec) for seed, spec in specs.items()]
    waits = find_predecessors(farm, [after], [after_any])
    return submit(farm, items, "catalog", JobOptions(owner="me", after=waits))


def job_of(receipt: Receipt, number: int = 0) -> str:
    return receipt.jobs[number][1]


def end(farm: Database, job: str, state: str = "done") -> None:
    with farm.write() as connection:
        if state == "cancelled":
            change_state(connection, job, "queued", "cancelled", "not wanted")
            return
        change_state(connection, job, "queued", "placing", "")
        change_state(connection, job, "placing", "rendering", "")
        if state == "done":
            change_state(connection, job, "rendering", "publishing", "")
        change_state(connection, job, "publishing" if state == "done" else "rendering", state, "")


def started(farm: Database) -> set[str]:
    """The jobs that a round of the dispatcher places."""
    dispatch(farm, "me")
    with farm.read() as connection:
        return set(connection.execute(select(jobs.c.id).where(jobs.c.state == "placing")).scalars())


def read(farm: Database, question: Any, *arguments: Any) -> Any:
    with farm.read() as connection:
        return question(connection, *arguments)


@pytest.fixture
def farm(database: Database) -> Database:
    with database.write() as connection:
        register(connection, "a", address="127.0.0.1", slots=9, device="cpu", vram_bytes=None)
    return database


def test_a_job_starts_when_the_other_is_done(farm: Database) -> None:
    first = job_of(submit_seeds(farm, 1))
    second = job_of(submit_seeds(farm, 2, after=first[:8]))
    assert read(farm, pending_reason, second) == f"job {first}, which is queued"
    assert read(farm, queue_needs, 0.0)["default"] == (True, 1), "no slot is needed for what waits"
    assert started(farm) == {first}
    assert read(farm, pending_reason, second) == f"job {first}, which is placing"
    with farm.write() as connection:
        for old, new in (("placing", "rendering"), ("rendering", "publishing"), ("publishing", "done")):
            change_state(connection, first, old, new, "")
    assert started(farm) == {second}
    assert read(farm, show_dependency, submit_seeds(farm, 3, after=first).batch)[0]["met"]


def test_a_batch_is_waited_for_as_a_whole(farm: Database) -> None:
    drafts = submit_seeds(farm, 1, 2)
    final = job_of(submit_seeds(farm, 3, after=drafts.batch))
    assert read(farm, pending_reason, final) == f"batch {drafts.batch} (2 jobs to go)"
    end(farm, job_of(drafts))
    assert read(farm, waits_for, [final]) == {final: f"batch {drafts.batch} (1 job to go)"}
    end(farm, job_of(drafts, 1))
    assert started(farm) == {final}


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_what_waits_for_a_failure_is_kept_and_told(farm: Database, state: str) -> None:
    first = job_of(submit_seeds(farm, 1))
    kept = job_of(submit_seeds(farm, 2, after=first))
    anyway = job_of(submit_seeds(farm, 3, after_any=first))
    end(farm, first, state)
    assert started(farm) == {anyway}
    verb = "has failed" if state == "failed" else "was cancelled"
    assert read(farm, find_impossible_jobs, [kept, anyway]) == {
        kept: f"cannot run: waits for job {first}, which {verb}"
    }
    (line,) = read(farm, estimate)
    assert (line["cannot_run"], line["fits"]) == (1, False)
    with farm.write() as connection:
        apply_command(connection, "retry", first, "me")
    assert read(farm, find_impossible_jobs, [kept]) == {}
    end(farm, first)
    assert started(farm) == {anyway, kept}


def test_all_predecessors_have_to_end_and_the_worst_is_told_first(farm: Database) -> None:
    one, two = submit_seeds(farm, 1, 2), submit_seeds(farm, 3)
    last = job_of(submit_seeds(farm, 4, after=f"{job_of(one)}, {two.batch}", after_any=job_of(one, 1)))
    end(farm, job_of(two), "failed")
    assert read(farm, pending_reason, last) == f"batch {two.batch} (1 failed), and 2 more"
    assert [each["any"] for each in read(farm, show_dependency, _dependency(farm, last))].count(True) == 1


def _dependency(farm: Database, job: str) -> str:
    with farm.read() as connection:
        return str(connection.execute(select(jobs.c.dependency).where(jobs.c.id == job)).scalar())


@pytest.mark.parametrize(
    ("after", "part"),
    [
        ("0123456789abcdef", "is neither a job nor a batch"),
        ("x'; drop table jobs", "is no id"),
        ("é", "is no id"),
        (",".join(["ab"] * (MAX_PREDECESSORS + 1)), "too many"),
    ],
)
def test_an_unknown_predecessor_is_refused_before_anything_is_queued(
    database: Database, after: str, part: str
) -> None:
    with pytest.raises(BadInput, match=f"after.*{part}"):
        submit_seeds(database, 1, after=after)
    assert read(database, lambda connection: connection.execute(select(batches)).all()) == []


def test_a_batch_that_is_still_submitted_is_refused(database: Database) -> None:
    batch = submit_seeds(database, 1).batch
    with database.write() as connection:
        connection.execute(text("update batches set submitted = null"))
    with pytest.raises(BadInput, match="still being submitted"):
        submit_seeds(database, 2, after=batch)


def test_a_job_that_was_queued_before_does_not_begin_to_wait(farm: Database) -> None:
    first, second = job_of(submit_seeds(farm, 1)), job_of(submit_seeds(farm, 2))
    assert submit_seeds(farm, 2, after=first).new == 0
    assert started(farm) == {first, second}


def test_a_cancelled_job_that_others_wait_for_is_queued_without_waiting(farm: Database) -> None:
    first = job_of(submit_seeds(farm, 1))
    second = job_of(submit_seeds(farm, 2, after=first))
    third = job_of(submit_seeds(farm, 3, after=second))
    end(farm, first, "cancelled")
    assert job_of(submit_seeds(farm, 1, after=third)) == first
    assert started(farm) == {first}
    with farm.write() as connection:
        let_start(connection, [second])
    assert started(farm) == {first, second}


@settings(max_examples=12)
@given(data=st.data())
def test_no_circle_keeps_a_farm_waiting(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Whatever is submitted, cancelled and submitted again in whatever order: in the end all is done."""
    farm = _copy_of_empty(tmp_path_factory)
    known: list[str] = []
    for _ in range(data.draw(st.integers(2, 8))):
        seeds = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True))
        after = ",".join(data.draw(st.lists(st.sampled_from(known), max_size=2))) if known else ""
        receipt = submit_seeds(farm, *seeds, after=after)
        known += [receipt.batch, job_of(receipt)]
        some = st.lists(st.sampled_from(sorted(in_state(farm, "queued")) or [""]), max_size=2, unique=True)
        for job in filter(None, data.draw(some)):
            end(farm, job, "cancelled")
    for job in in_state(farm, "cancelled"):
        with farm.write() as connection:
            apply_command(connection, "retry", job, "me")
    while free := _free(farm):
        for job in free:
            end(farm, job)
    assert len(in_state(farm, "done")) == len(read(farm, lambda c: c.execute(select(jobs.c.id)).all()))
    farm.close()


def in_state(farm: Database, state: str) -> list[str]:
    with farm.read() as connection:
        return list(connection.execute(select(jobs.c.id).where(jobs.c.state == state)).scalars())


def _free(farm: Database) -> list[str]:
    with farm.write() as connection:
        release(connection)
        free = select(jobs.c.id).where(jobs.c.state == "queued", is_free())
        return list(connection.execute(free).scalars())


def _copy_of_empty(factory: pytest.TempPathFactory) -> Database:
    empty = factory.getbasetemp() / "empty-farm.db"
    if not empty.exists():
        made = Database(f"sqlite:///{empty}")
        upgrade(made)
        made.close()
    copy: Path = factory.mktemp("farm") / "farm.db"
    copy.write_bytes(empty.read_bytes())
    return Database(f"sqlite:///{copy}")
