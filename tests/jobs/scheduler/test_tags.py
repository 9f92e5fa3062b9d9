"""Jobs start only on nodes that have all their tags, and those that cannot hide no others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from infra.database import Database
from jobs.db import tables
from jobs.db.node_changes import change_node
from jobs.db.nodes import register
from jobs.db.rates import record_rate
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.estimate import estimate, verdict
from jobs.scheduler.candidates import most_of_an_owner
from jobs.scheduler.capacity import cannot_run, find_impossible_jobs
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.pending_reason import pending_reason
from jobs.scheduler.placement import Node, RunningGroup, place
from jobs.scheduler.regrouping import jobs_to_regroup
from jobs.simulation.setup import from_farm
from render.spec import Spec

TAGS = st.frozensets(st.sampled_from(["a", "b"]))


def tagged(name: str, slots: int, *tags: str) -> Node:
    return Node(name=name, slots=slots, tags=frozenset(tags))


def job(name: str, *tags: str, **more: Any) -> PendingJob:
    return PendingJob(job=name, tags=frozenset(tags), **more)


def placed(nodes: list[Node], *pending: PendingJob) -> dict[str, dict[str, int]]:
    return {group.job: group.slots for group in place(nodes, [], pending, []).placed}


@given(
    st.lists(st.tuples(st.integers(0, 4), TAGS), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), TAGS), max_size=6),
)
def test_all_nodes_of_a_group_have_its_tags(
    farm: list[tuple[int, frozenset[str]]], wanted: list[tuple[int, int, frozenset[str]]]
) -> None:
    nodes = [Node(name=str(n), slots=slots, tags=tags) for n, (slots, tags) in enumerate(farm)]
    pending = [
        PendingJob(job=str(n), least=least, most=least + more, tags=tags)
        for n, (least, more, tags) in enumerate(wanted)
    ]
    for group in place(nodes, [], pending, []).placed:
        assert all(pending[int(group.job)].tags <= nodes[int(name)].tags for name in group.slots)
    for each in pending:
        if any(node.slots for node in nodes):
            assert (cannot_run(nodes, each) is None) == bool(placed(nodes, each))


def test_a_group_over_several_nodes_leaves_out_one_without_the_tag() -> None:
    nodes = [tagged("n1", 2, "a"), tagged("n2", 8), tagged("n3", 2, "a", "b")]
    assert placed(nodes, job("x", "a", least=4, most=4)) == {"x": {"n1": 2, "n3": 2}}
    assert placed(nodes, job("x", "a", least=5, most=5)) == {}


def test_slots_are_shared_with_the_jobs_that_can_use_them() -> None:
    nodes = [tagged("n1", 4), tagged("n2", 4, "a")]
    assert placed(nodes, job("1", most=8), job("2", "b", most=8)) == {"1": {"n1": 4, "n2": 4}}
    both = placed(nodes, job("1", "a", most=8), job("2", "a", most=8))
    assert both == {"1": {"n2": 2}, "2": {"n2": 2}}
    # However many wait for a tag, they get no more than the nodes that have it.
    many = placed(nodes, job("1", most=8), *(job(f"2{n}", "a", most=8) for n in range(20)))
    assert sum(many["1"].values()) == 4


def test_a_job_does_not_begin_anew_for_slots_that_it_cannot_have() -> None:
    nodes = [tagged("n1", 1, "a"), tagged("n2", 4)]
    anew = job("x", "a", most=8, estimated_seconds=1e4)
    group = RunningGroup(job="x", owner="", queue="default", slots={"n1": 1}, ends_in=1e4, anew=anew)
    free = replace(anew, job="y", tags=frozenset())
    other = replace(group, job="y", slots={"n2": 1}, ends_in=9e3, anew=free)
    assert jobs_to_regroup(nodes, [group]) == []
    assert [each.job for each in jobs_to_regroup(nodes, [group, other])] == ["y"]
    assert [each.job for each in jobs_to_regroup([nodes[0], tagged("n2", 4, "a")], [group])] == ["x"]


def test_the_sentence_says_what_is_missing() -> None:
    nodes = [tagged("n1", 1, "a"), tagged("n2", 8)]
    assert cannot_run(nodes, job("x", "b")) == "cannot run: needs tag b, no node has it"
    assert cannot_run(nodes, job("x", "a", "b")) == "cannot run: needs tags a and b, no node has both"
    sentence = "cannot run: needs 2 slots on nodes with tag a, which have 1"
    assert cannot_run(nodes, job("x", "a", least=2, most=2)) == sentence
    assert cannot_run([replace(nodes[0], slots=0)], job("x", "b")) is None, "nobody knows what there will be"


def submit_jobs(database: Database, count: int, first: int = 0, **options: Any) -> list[str]:
    items = [
        BatchItem(row=n, custom_id=str(n), spec=Spec(prompt="a vase", seed=n, width=128, height=128))
        for n in range(first, first + count)
    ]
    return [id for _, id in submit(database, items, "x", JobOptions(owner="me", ranks=1, **options)).jobs]


def node(database: Database, name: str, slots: int, *tags: str, own: str = "") -> None:
    with database.write() as connection:
        register(
            connection, name, address="127.0.0.1", slots=slots, device="cpu", vram_bytes=None, own_tags=own
        )
        if tags:
            change_node(connection, name, "me", add_tags=tags)


def test_jobs_that_wait_for_a_tag_hide_no_others(database: Database) -> None:
    first = submit_jobs(database, most_of_an_owner(2) + 5, require_tag=("a100",))
    (free,) = submit_jobs(database, 1, first=1000)
    node(database, "n1", 2)
    assert len(dispatch(database, "me")) == 1
    with database.read() as connection:
        assert find_impossible_jobs(connection, [first[0], free]) == {
            first[0]: "cannot run: needs tag a100, no node has it"
        }
        (line,) = estimate(connection)
        assert line["cannot_run"] == len(first) and verdict(line).startswith("no: 69 jobs cannot run: needs")
    node(database, "n2", 3, own="a100")
    assert [each for each, _, _ in dispatch(database, "me")] == ["n2"] * 3
    with database.read() as connection:
        assert find_impossible_jobs(connection, first) == {}


def test_the_reason_names_the_tag_and_the_estimate_its_slots(database: Database) -> None:
    (one,) = submit_jobs(database, 1, require_tag=("a100",))
    node(database, "n1", 3)
    node(database, "n2", 1, "a100")
    with database.write() as connection:
        connection.execute(update(tables.jobs).values(work=100.0))
        record_rate(connection, "builtin", "cpu", 1.0, 1.0)
    with database.read() as connection:
        assert pending_reason(connection, one) == "its turn"
        (line,) = estimate(connection)
        moment = connection.exec_driver_sql("select max(created) from jobs").scalar_one()
        assert 95 < line["ends"] - moment < 200, "the other slots are of no use"
        assert from_farm(connection).run().makespan_s >= 100
    with database.write() as connection:
        change_node(connection, "n2", "me", draining=True)
    with database.read() as connection:
        assert pending_reason(connection, one) == "a node with tag a100 that takes jobs"
        assert find_impossible_jobs(connection, [one]) == {}, "it is drained, not gone"
    assert dispatch(database, "me") == []
