"""The reason why a queued job does not start yet."""

from typing import Any

from sqlalchemy import select, update

from infra.database import Database
from jobs.db.nodes import register
from jobs.db.queues import set_queue
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.pending_reason import pending_reason
from render.spec import Spec


def submit_job(farm: Database, side: int = 128, seed: int = 1, **options: Any) -> str:
    spec = Spec(prompt="a vase", seed=seed, width=side, height=side)
    submit(farm, [BatchItem(row=1, custom_id="1", spec=spec)], "test", JobOptions(owner="me", **options))
    with farm.read() as connection:
        return str(
            connection.execute(select(jobs.c.id).where(jobs.c.spec["seed"].as_integer() == seed)).scalar()
        )


def why(farm: Database, job: str) -> str | None:
    with farm.read() as connection:
        return pending_reason(connection, job)


def node(farm: Database, name: str, slots: int = 1, vram_bytes: int | None = None) -> None:
    with farm.write() as connection:
        register(connection, name, address="127.0.0.1", slots=slots, device="cuda", vram_bytes=vram_bytes)


def test_a_job_waits_for_a_node_and_then_for_its_turn(database: Database) -> None:
    first, second = submit_job(database), submit_job(database, seed=2)
    assert why(database, first) == "a node"
    node(database, "a")
    assert why(database, second) == "its turn"
    assert dispatch(database, "me")
    assert why(database, first) is None


def test_a_job_waits_for_its_time_and_its_queue(database: Database) -> None:
    node(database, "a", slots=2)
    with database.write() as connection:
        set_queue(connection, "few", {"group_limit": 1})
        set_queue(connection, "shut", {"paused": True})
    later = submit_job(database, not_before=4102444800.0)
    assert (why(database, later) or "").startswith("its start time, 2")
    assert why(database, submit_job(database, seed=2, queue="shut")) == "queue shut to open"
    submit_job(database, seed=3, queue="few")
    waiting = submit_job(database, seed=4, queue="few")
    assert dispatch(database, "me")
    assert why(database, waiting) == "queue few, which runs at most 1 at a time"


def test_an_image_that_fits_on_no_slot_alone_is_placed_on_several_or_says_what_it_needs(
    database: Database,
) -> None:
    job = submit_job(database, side=4096)
    with database.read() as connection:
        memory = connection.execute(select(jobs.c.memory)).scalar_one()
    assert [ranks for ranks, _ in memory][:3] == [1, 4, 16]
    alone, by_four = memory[0][1], memory[1][1]
    assert by_four < alone / 2
    node(database, "a", slots=1, vram_bytes=by_four)
    assert (why(database, job) or "").startswith("more or larger nodes: needs 1 rank with 0.")
    assert not dispatch(database, "me")
    node(database, "b", slots=3, vram_bytes=by_four)
    assert why(database, job) == "its turn"
    assert len(dispatch(database, "me")) == 2


def test_a_job_of_before_is_refused_by_no_node_for_its_memory(database: Database) -> None:
    job = submit_job(database)
    with database.write() as connection:
        connection.execute(update(jobs).values(memory=None, least_ranks=2, most_ranks=2))
    node(database, "a", slots=1, vram_bytes=1)
    assert why(database, job) == "more or larger nodes: needs 2 ranks"
    node(database, "b", slots=1, vram_bytes=1)
    assert dispatch(database, "me")
