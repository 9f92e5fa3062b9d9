"""The reason why a queued job does not start yet."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from infra.database import Database
from jobs.db.nodes import register
from jobs.db.queues import set_queue
from jobs.db.rates import record_rate
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs, nodes
from jobs.estimate import estimate
from jobs.scheduler.capacity import cannot_run, find_impossible_jobs
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.pending_reason import pending_reason
from jobs.scheduler.placement import Node, place
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
    assert (why(database, job) or "").startswith("more or larger nodes: needs 1 slot with 0.")
    assert not dispatch(database, "me")
    node(database, "b", slots=3, vram_bytes=by_four)
    assert why(database, job) == "its turn"
    assert len(dispatch(database, "me")) == 2


def test_a_job_that_can_never_run_says_so_everywhere(database: Database) -> None:
    large, small = submit_job(database, ranks=16, queue="q"), submit_job(database, seed=2, queue="q")

    def impossible() -> dict[str, str]:
        with database.read() as connection:
            return find_impossible_jobs(connection, [large, small])

    def line() -> dict[str, Any]:
        with database.read() as connection:
            (found,) = estimate(connection)
        return found

    assert impossible() == {}, "a farm without nodes says nothing of what it will have"
    node(database, "a", slots=2)
    with database.write() as connection:
        record_rate(connection, "builtin", "cuda", work=1.0, slot_seconds=1e-9)
    assert impossible() == {large: "cannot run: needs 16 slots, the farm has 2"}
    assert (line()["fits"], line()["cannot_run"], line()["ends"]) == (False, 1, None)
    assert line()["cannot_run_reason"] == "cannot run: needs 16 slots, the farm has 2"
    with database.write() as connection:
        connection.execute(update(nodes).values(draining=True))
    assert large in impossible(), "a node that is drained for an hour is a node of the farm"
    node(database, "b", slots=14)
    assert impossible() == {}
    with database.write() as connection:
        connection.execute(update(nodes).values(draining=False))
    assert (line()["fits"], line()["cannot_run"], line()["cannot_run_reason"]) == (True, 0, None)


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from([None, 10, 30]), st.sampled_from(["cpu", "cuda"])),
        max_size=4,
    ),
    st.integers(1, 20),
    st.integers(0, 20),
    st.sampled_from([(), ((1, 20),), ((1, 40), (4, 12))]),
)
def test_it_cannot_run_exactly_if_an_empty_farm_places_it_nowhere(
    farm: list[tuple[int, int | None, str]], least: int, more: int, memory: tuple[tuple[int, int], ...]
) -> None:
    nodes_ = [
        Node(name=str(number), slots=slots, vram_bytes=vram, device=device)
        for number, (slots, vram, device) in enumerate(farm)
    ]
    job = PendingJob(job="x", least=least, most=least + more, memory=memory)
    placed = place(nodes_, [], [job], []).placed
    if any(each.slots for each in nodes_):
        assert (cannot_run(nodes_, job) is None) == bool(placed)


def test_a_job_of_before_is_refused_by_no_node_for_its_memory(database: Database) -> None:
    job = submit_job(database)
    with database.write() as connection:
        connection.execute(update(jobs).values(memory=None, least_ranks=2, most_ranks=2))
    node(database, "a", slots=1, vram_bytes=1)
    assert why(database, job) == "more or larger nodes: needs 2 slots"
    node(database, "b", slots=1, vram_bytes=1)
    assert dispatch(database, "me")
