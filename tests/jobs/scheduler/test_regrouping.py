"""Jobs begin anew on more slots where no job waits for them, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from infra.database import Database, now
from jobs.db import leases
from jobs.db.claims import claim, make_ready, release
from jobs.db.heartbeats import heartbeat
from jobs.db.nodes import register
from jobs.db.rates import record_rate
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs, nodes
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import Node, RunningGroup
from jobs.scheduler.regrouping import REGROUP_GAIN_S, jobs_to_regroup
from render.spec import Spec

NODES = [Node(name="a", slots=4), Node(name="b", slots=4)]


def group(name: str, slots: dict[str, int], ends_in: float | None, most: int = 8) -> RunningGroup:
    left = None if ends_in is None else ends_in * sum(slots.values())
    anew = PendingJob(job=name, most=most, estimated_seconds=left) if most else None
    return RunningGroup(job=name, owner="", queue="default", slots=slots, ends_in=ends_in, anew=anew)


def chosen(*groups: RunningGroup, nodes: list[Node] = NODES) -> dict[str, int]:
    return {each.job: each.ranks for each in jobs_to_regroup(nodes, groups)}


def test_the_job_that_ends_last_gets_what_is_free() -> None:
    assert chosen(group("x", {"a": 4}, 1000)) == {"x": 8}
    assert chosen(group("x", {"a": 3}, 1000), group("y", {"b": 3}, 2000)) == {}, (
        "two free slots do not double"
    )
    assert chosen(group("x", {"a": 2}, 1000), group("y", {"b": 2}, 2000), group("z", {"b": 2}, 10)) == {
        "y": 4
    }


def test_a_job_that_gains_nothing_stays() -> None:
    assert chosen(group("ends soon", {"a": 1}, REGROUP_GAIN_S)) == {}
    assert chosen(group("no estimate", {"a": 1}, None)) == {}
    assert chosen(group("fixed, or not rendering", {"a": 1}, 1000, most=0)) == {}
    assert chosen(group("as many as it can use", {"a": 2}, 1000, most=3)) == {}
    soon = group("would not be spread over nodes", {"a": 4}, 4)
    assert jobs_to_regroup(NODES, [soon], gain_s=1) == []


def test_slots_of_another_kind_are_no_use() -> None:
    nodes = [NODES[0], replace(NODES[1], device="cuda")]
    assert chosen(group("x", {"a": 3}, 1000), nodes=nodes) == {}
    assert chosen(group("x", {"b": 2}, 1000), nodes=nodes) == {"x": 4}


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0, 1e5), st.integers(0, 16)), max_size=4
    )
)
def test_no_more_is_promised_than_is_free(drawn: list[tuple[int, int, float, int]]) -> None:
    nodes = [Node(name="a", slots=16), Node(name="b", slots=16)]
    groups = [group(str(n), {"a": a, "b": b}, left, most) for n, (a, b, left, most) in enumerate(drawn)]
    found = jobs_to_regroup(nodes, groups)
    free = 32 - sum(sum(each.slots.values()) for each in groups)
    assert sum(each.ranks - each.now for each in found) <= free
    assert all(2 * each.now <= each.ranks <= drawn[int(each.job)][3] for each in found)


def test_a_job_of_a_farm_stops_and_goes_on_with_all_slots(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that a lease of an hour is none from before the clock was set back.
    monkeypatch.setattr(leases, "CLOCK_SLACK_S", 3600.0)
    with database.write() as connection:
        register(connection, "a", address="127.0.0.1", slots=4, device="cpu", vram_bytes=None)
        connection.execute(update(nodes).values(lease_until=now() + 3600))
    spec = Spec(prompt="a vase", seed=1, width=512, height=512)
    submit(database, [BatchItem(row=0, custom_id="0", spec=spec)], "test", JobOptions(owner="me", ranks=1))
    ((_, attempt, _),) = dispatch(database, "a")
    with database.write() as connection:
        part = claim(connection, attempt, "a", "supervisor")
        assert part is not None
        make_ready(connection, part, None)
        change_state(connection, part.job, "placing", "rendering", "")
        connection.execute(update(jobs).values(most_ranks=4, work=1000.0, progress=0.1))
        model = connection.execute(select(jobs.c.model)).scalar_one()
        record_rate(connection, model, "cpu", 1.0, 1.0)
    assert dispatch(database, "a") == [] and _row(database).state == "rendering", "it may take slots as it is"
    with database.write() as connection:
        heartbeat(connection, part, elastic=False)
    assert dispatch(database, "a") == []
    row = _row(database)
    assert row.state == "queued" and row.reason.startswith("goes on with 4 ranks in place of 1")
    assert dispatch(database, "a") == [], "its group is writing its checkpoint"
    with database.write() as connection:
        release(connection, part)
    ((_, _, fence),) = dispatch(database, "a")
    assert (_row(database).state, fence) == ("placing", row.fence + 1)


def _row(database: Database) -> Any:
    with database.read() as connection:
        return connection.execute(select(jobs)).one()
