"""A running group is given free slots and gives them back; nobody else has them meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from infra.database import Database, now
from jobs.db import leases
from jobs.db.board_queries import attempts_of
from jobs.db.claims import claim, make_ready, rendezvous_endpoint, slots_held
from jobs.db.growing import (
    HeldSlots,
    held_slots,
    part_left,
    ranks_over_time,
    record_endpoint,
    slot_seconds_of,
    take_back,
)
from jobs.db.heartbeats import heartbeat
from jobs.db.nodes import register
from jobs.db.outcomes import finish
from jobs.db.rates import record_rate
from jobs.db.records import Assignment
from jobs.db.shrinking import FirstNode, has_left, take_over
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, jobs, members, nodes
from jobs.report import Scope, make_report
from jobs.scheduler.dispatcher import dispatch
from render.spec import Spec


def send(database: Database, prompt: str, ranks: int) -> None:
    spec = Spec(prompt=prompt, seed=1, width=128, height=128)
    options = JobOptions(owner="me", ranks=ranks)
    submit(database, [BatchItem(row=1, custom_id="1", spec=spec)], prompt, options)


@pytest.fixture
def part(database: Database, monkeypatch: pytest.MonkeyPatch) -> Assignment:
    """A job that renders on one of its node's four slots, may use all, and has an hour to go."""
    # So that a lease of an hour is none from before the clock was set back.
    monkeypatch.setattr(leases, "CLOCK_SLACK_S", 3600.0)
    with database.write() as connection:
        register(connection, "a", address="127.0.0.1", slots=4, device="cpu", vram_bytes=None)
        connection.execute(update(nodes).values(lease_until=now() + 3600))
    send(database, "a vase", 1)
    ((_, attempt, _),) = dispatch(database, "a")
    with database.write() as connection:
        found = claim(connection, attempt, "a", "supervisor")
        assert found is not None
        make_ready(connection, found, "127.0.0.1:5000")
        change_state(connection, found.job, "placing", "rendering", "", expected_fence=1)
        connection.execute(update(jobs).values(most_ranks=4, work=1000.0, progress=0.1))
        model = connection.execute(select(jobs.c.model)).scalar_one()
        record_rate(connection, model, "cpu", 1.0, 4.0)
    return found


def beat(database: Database, part: Assignment, elastic: bool | None = True) -> HeldSlots | None:
    with database.write() as connection:
        assert heartbeat(connection, part, 0.2, elastic=elastic) == "continue"
        return held_slots(connection, part)


def grown(database: Database, part: Assignment) -> None:
    """The group has all slots of its node."""
    beat(database, part)
    assert dispatch(database, "a") == []
    assert beat(database, part) == HeldSlots(slots=(0, 1, 2, 3), wanted=(0, 1, 2, 3))


def test_a_group_takes_free_slots_and_nothing_else_is_placed_on_them(
    database: Database, part: Assignment
) -> None:
    grown(database, part)
    dispatch(database, "a")
    with database.read() as connection:
        assert connection.execute(select(jobs.c.state)).scalar_one() == "rendering"
        assert slots_held(connection) == {part.attempt: {"a": (0, 1, 2, 3)}}
        (attempt,) = attempts_of(connection, part.job)
    assert [each["ranks"] for each in attempt["ranks"]] == [1, 4]


def test_a_group_that_takes_none_is_given_none(database: Database, part: Assignment) -> None:
    beat(database, part, elastic=False)
    dispatch(database, "a")
    with database.read() as connection:
        assert held_slots(connection, part) == HeldSlots(slots=(0,), wanted=(0,))
        reason = connection.execute(select(jobs.c.reason)).scalar_one()
    assert reason.startswith("goes on with 4 ranks in place of 1"), "it begins anew"


def test_a_group_gives_slots_back_when_a_job_waits(database: Database, part: Assignment) -> None:
    grown(database, part)
    send(database, "a cup", 2)
    assert dispatch(database, "a") == []
    held = beat(database, part)
    assert held == HeldSlots(slots=(0, 1, 2, 3), wanted=(0, 1))
    assert dispatch(database, "a") == [], "its ranks are still there"
    assert beat(database, part) == held, "no more is asked back"
    with database.write() as connection:
        take_back(connection, part, {2, 3})
        take_back(connection, part, {2, 3})
    assert beat(database, part) == HeldSlots(slots=(0, 1), wanted=(0, 1))
    ((_, attempt, _),) = dispatch(database, "a")
    with database.read() as connection:
        assert slots_held(connection)[attempt] == {"a": (2, 3)}
        times = attempts_of(connection, part.job)[0]["ranks"]
    assert [each["ranks"] for each in times] == [1, 4, 2]


def test_a_slot_whose_rank_could_not_join_is_free(database: Database, part: Assignment) -> None:
    grown(database, part)
    with database.write() as connection:
        take_back(connection, part, {2})
        heartbeat(connection, part, elastic=False)
    dispatch(database, "a")
    assert beat(database, part, elastic=False) == HeldSlots(slots=(0, 1, 3), wanted=(0, 1, 3))


def test_who_has_left_gives_nothing_back(database: Database, part: Assignment) -> None:
    grown(database, part)
    with database.write() as connection:
        connection.execute(update(members).values(claimed_by="another"))
        assert held_slots(connection, part) is None
        take_back(connection, part, {1, 2, 3})
        assert slots_held(connection) == {part.attempt: {"a": (0, 1, 2, 3)}}


def joined(database: Database, part: Assignment) -> Assignment:
    """The part of another node that has joined the group."""
    grown(database, part)
    with database.write() as connection:
        register(connection, "b", address="127.0.0.2", slots=2, device="cpu", vram_bytes=None)
        connection.execute(update(nodes).values(lease_until=now() + 3600))
        connection.execute(update(jobs).values(most_ranks=8))
    assert dispatch(database, "a") == [("b", part.attempt, part.fence)]
    assert dispatch(database, "a") == [], "one node after the other"
    with database.write() as connection:
        assert slots_held(connection)[part.attempt] == {"a": (0, 1, 2, 3), "b": (0, 1)}
        found = claim(connection, part.attempt, "b", "another")
    assert found is not None and found.added and found.place == 1 and found.secret == part.secret
    held = beat(database, part)
    assert held is not None and held.joins
    with database.read() as connection:
        assert rendezvous_endpoint(connection, found) == "127.0.0.1:5000", "nobody else is waited for"
    return found


def test_a_node_joins_a_running_group(database: Database, part: Assignment) -> None:
    other = joined(database, part)
    assert beat(database, other) == HeldSlots(slots=(0, 1), wanted=(0, 1))
    assert dispatch(database, "a") == []
    with database.write() as connection:
        record_endpoint(connection, other, "127.0.0.2:1")
        (attempt,) = attempts_of(connection, part.job)
        assert [each["ranks"] for each in attempt["ranks"]] == [1, 4, 6]
        finish(connection, part, "root", 1.0)
        assert connection.execute(select(jobs.c.state, jobs.c.reason)).one() == (
            "done",
            "rendered by 2 nodes",
        )


@pytest.mark.parametrize("claimed", [True, False])
def test_a_node_that_does_not_come_leaves_the_group_as_it_is(
    database: Database, part: Assignment, claimed: bool
) -> None:
    other = joined(database, part)
    with database.write() as connection:
        own = members.c.node == "b"
        lease = {"lease_until": now() - 100.0} if claimed else {"claimed_by": None}
        connection.execute(update(members).where(own).values(lease))
        if not claimed:
            moment = connection.execute(select(now())).scalar_one()
            connection.execute(update(members).where(own).values(slots_before=[[moment - 100.0, []]]))
            connection.execute(update(attempts).values(created=moment - 200.0))
    dispatch(database, "a")
    with database.read() as connection:
        assert connection.execute(select(jobs.c.state, jobs.c.losses)).one() == ("rendering", 0)
        assert slots_held(connection) == {part.attempt: {"a": (0, 1, 2, 3)}}
        assert has_left(connection, other)
    assert dispatch(database, "a") == [], "it is not asked again"


def test_a_node_that_has_joined_may_become_the_first_and_is_then_as_any(
    database: Database, part: Assignment
) -> None:
    other = joined(database, part)
    beat(database, other)
    lost = FirstNode(place=0, endpoint="127.0.0.1:5000", places=(0, 1))
    with database.write() as connection:
        found = take_over(connection, other, lost, "127.0.0.2:1", patient=True)
        assert found is not None and found.place == 1
        connection.execute(update(members).where(members.c.node == "b").values(lease_until=now() - 100.0))
    dispatch(database, "a")
    with database.read() as connection:
        assert connection.execute(select(jobs.c.losses)).scalar_one() == 1


def test_a_whole_node_is_asked_back(database: Database, part: Assignment) -> None:
    other = joined(database, part)
    beat(database, other)
    send(database, "a cup", 5)
    dispatch(database, "a")
    asked = [beat(database, each) for each in (part, other)]
    assert [each.wanted for each in asked if each is not None] == [(0,), ()]
    with database.write() as connection:
        part_left(connection, other.attempt, other.node)
        take_back(connection, part, {1, 2, 3})
    assert len(dispatch(database, "a")) == 2


class Row:
    """A part as it is read."""

    def __init__(self, slots: list[int], before: Any = None, left_at: float | None = None) -> None:
        self.slots, self.slots_before, self.left_at = slots, before, left_at
        self.created = 100.0


def test_the_time_of_slots_and_the_ranks_over_time() -> None:
    grew = Row([0, 1], [[110.0, [0]], [130.0, [0, 1, 2, 3]]])
    assert slot_seconds_of(grew, 140.0) == 10 + 80 + 20
    assert ranks_over_time([grew]) == [(100.0, 1), (110.0, 4), (130.0, 2)]
    assert ranks_over_time([Row([0]), Row([0, 1], left_at=120.0)]) == [(100.0, 3), (120.0, 1)]
    assert ranks_over_time([Row([0])]) == [(100.0, 1)]


def test_lent_slots_count_for_the_time_that_they_are_lent(database: Database, part: Assignment) -> None:
    grown(database, part)
    with database.write() as connection:
        moment = connection.execute(select(now())).scalar_one()
        connection.execute(update(attempts).values(created=moment - 100.0, ended=moment))
        connection.execute(update(members).values(slots_before=[[moment - 60.0, [0]]]))
        spent = make_report(connection, Scope())["slot_seconds"]
    assert spent == pytest.approx(40 + 4 * 60, abs=0.01)
