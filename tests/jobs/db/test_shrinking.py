"""A group goes on without a node: its slots are free, and nothing that the node does counts any more."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from infra.database import Database, now
from jobs.db.board_queries import active_jobs, attempts_of
from jobs.db.claims import claim, make_ready, slots_held
from jobs.db.heartbeats import heartbeat
from jobs.db.nodes import list_nodes, register, set_draining
from jobs.db.outcomes import SHRINK_S, finish
from jobs.db.records import Assignment
from jobs.db.shrinking import FirstNode, depart, has_left, has_room, leave, take_over
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, jobs, members, nodes
from jobs.errors import LostRace
from jobs.report import Scope, make_report
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.warm_reuse import shape_of
from render.spec import Spec

Parts = tuple[Assignment, Assignment]
FIRST = FirstNode(place=0, endpoint="127.0.0.1:5000", places=(0, 1))
"""Of each group as it begins."""


def begin(database: Database, names: str) -> list[Assignment]:
    """The parts of a group of these nodes that renders, the first one first."""
    with database.write() as connection:
        for name in names:
            register(connection, name, address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    spec = Spec(prompt="a vase", seed=1, width=128, height=128)
    options = JobOptions(owner="me", ranks=len(names))
    submit(database, [BatchItem(row=1, custom_id="1", spec=spec)], "test", options)
    attempt = dispatch(database, "a")[0][1]
    found = []
    with database.write() as connection:
        for name in names:
            part = claim(connection, attempt, name, f"s{name}")
            assert part is not None
            make_ready(connection, part, None if part.place else "127.0.0.1:5000")
            found.append(part)
        change_state(connection, found[0].job, "placing", "rendering", "", expected_fence=1)
    return found


@pytest.fixture
def parts(database: Database) -> Parts:
    """Both parts of a group of two nodes that renders, the first one first."""
    first, other = begin(database, "ab")
    return first, other


def lose(database: Database, part: Assignment, seconds: float) -> None:
    """Let a member's lease be over for so long."""
    own = (members.c.attempt == part.attempt) & (members.c.node == part.node)
    with database.write() as connection:
        connection.execute(update(members).where(own).values(lease_until=now() - seconds))


def job_of(database: Database, part: Assignment) -> Any:
    with database.read() as connection:
        return connection.execute(select(jobs).where(jobs.c.id == part.job)).one()


def test_a_group_goes_on_without_a_node(database: Database, parts: Parts) -> None:
    # J: rendering > rendering > done, in one attempt.
    first, other = parts
    with database.write() as connection:
        assert leave(connection, first, {other.place}) is None
        assert has_left(connection, other) and not has_left(connection, first)
        assert heartbeat(connection, first, 0.5) == "continue"
        assert heartbeat(connection, other, 0.9) == "abandon", "a node that comes back finds itself out"
        assert slots_held(connection) == {first.attempt: {"a": (0,)}}
        assert [node["used"] for node in list_nodes(connection)] == [1, 0]
        assert shape_of(connection, first.attempt) == (("a", (0,)),)
        (attempt,) = attempts_of(connection, first.job)
        assert [member["left"] is None for member in attempt["members"]] == [True, False]
    submit(
        database,
        [BatchItem(row=1, custom_id="2", spec=Spec(prompt="a cup", width=128, height=128))],
        "test",
        JobOptions(owner="me"),
    )
    assert [node for node, *_ in dispatch(database, "a")] == ["b"], "its slot is free at once"
    with database.write() as connection:
        finish(connection, first, "root", 3.0)
    row = job_of(database, first)
    assert (row.state, row.attempts, row.losses, row.fence) == ("done", 0, 0, 1)
    assert row.reason == "rendered by 1 node"


def test_the_group_has_time_to_notice_before_its_attempt_is_lost(database: Database, parts: Parts) -> None:
    first, other = parts
    lose(database, other, 1)
    dispatch(database, "a")
    assert job_of(database, first).state == "rendering"
    with database.write() as connection:
        assert heartbeat(connection, first) == "continue"
    lose(database, other, SHRINK_S + 1)
    dispatch(database, "a")
    assert (job_of(database, first).losses, job_of(database, first).fence) == (1, 2)


def test_a_group_without_its_first_node_is_lost(database: Database, parts: Parts) -> None:
    first, _ = parts
    lose(database, first, 1)
    dispatch(database, "a")
    assert job_of(database, first).losses == 1


def test_a_node_that_has_left_is_not_waited_for(database: Database, parts: Parts) -> None:
    first, other = parts
    with database.write() as connection:
        leave(connection, first, {other.place})
    lose(database, other, 10 * SHRINK_S)
    dispatch(database, "a")
    assert job_of(database, first).state == "rendering"


def test_only_who_holds_the_attempt_goes_on(database: Database, parts: Parts) -> None:
    first, other = parts
    with database.write() as connection:
        leave(connection, first, {other.place})
        # Out itself, it cannot put the first one out.
        assert leave(connection, other, {first.place}) is None
        assert not has_left(connection, first)
        connection.execute(update(attempts).values(ended=now()))
    with database.write() as connection:
        connection.execute(update(members).values(left_at=None))
        leave(connection, first, {other.place})
        assert not has_left(connection, other), "the attempt is over"


def test_a_group_that_is_too_small_for_the_image_says_so(database: Database, parts: Parts) -> None:
    first, other = parts
    with database.write() as connection:
        connection.execute(update(jobs).values(memory=[[2, 100]]))
        connection.execute(update(nodes).values(vram_bytes=150))
        problem = leave(connection, first, {other.place})
    assert problem is not None and "needs more memory than the 1 rank that is left has" in problem


@pytest.mark.parametrize(
    ("ranks", "vram", "memory", "enough"),
    [
        (1, None, (), True),
        (1, 50, ((1, 50), (2, 30)), True),
        (1, 40, ((1, 50), (2, 30)), False),
        (3, 40, ((1, 50), (2, 30)), True),
        (1, 60, ((2, 30),), True),
        (1, 59, ((2, 30),), False),
        (1, None, ((2, 30),), True),
    ],
)
def test_room(ranks: int, vram: int | None, memory: tuple[tuple[int, int], ...], enough: bool) -> None:
    assert has_room(ranks, vram, memory) == enough


@pytest.mark.usefixtures("parts")
def test_the_time_of_a_slot_ends_when_its_node_leaves(database: Database) -> None:
    with database.write() as connection:
        moment = connection.execute(select(now())).scalar_one()
        connection.execute(update(attempts).values(created=moment - 100.0, ended=moment))
        gone = members.c.node == "b"
        connection.execute(update(members).where(gone).values(left_at=moment - 60.0))
        spent = make_report(connection, Scope())["slot_seconds"]
    assert spent == pytest.approx(140.0, abs=0.01)


def test_another_node_takes_the_place_of_the_first_one(database: Database, parts: Parts) -> None:
    # J: rendering > rendering > done, in one attempt.
    first, other = parts
    with database.write() as connection:
        found = take_over(connection, other, FIRST, "127.0.0.3:1", patient=True)
        assert found == FirstNode(place=1, endpoint="127.0.0.3:1", places=(1,))
        # Its answer was lost; it asks again.
        assert take_over(connection, other, FIRST, "127.0.0.3:2", patient=True) == found
        assert has_left(connection, first)
        leave(connection, first, {other.place})
        assert heartbeat(connection, first, 0.9) == "abandon", "the first one comes back"
        assert heartbeat(connection, other, 0.5) == "continue"
        (running,) = active_jobs(connection, 10)
        assert running["id"] == first.job
    with pytest.raises(LostRace), database.write() as connection:
        finish(connection, first, "root", 3.0)
    # The new first one is not waited for longer than any.
    lose(database, first, 100)
    dispatch(database, "b")
    assert job_of(database, first).state == "rendering"
    with database.write() as connection:
        finish(connection, other, "root", 3.0)
    assert (job_of(database, first).state, job_of(database, first).fence) == ("done", 1)


def test_of_two_halves_one_goes_on(database: Database, parts: Parts) -> None:
    first, other = parts
    with database.write() as connection:
        leave(connection, first, {other.place})
    with pytest.raises(LostRace), database.write() as connection:
        take_over(connection, other, FIRST, "127.0.0.3:1", patient=False)
    with database.write() as connection:
        assert heartbeat(connection, first) == "continue"


def test_the_next_node_goes_first_and_others_follow_it(database: Database) -> None:
    _, second, third = begin(database, "abc")
    with database.write() as connection:
        assert take_over(connection, third, FIRST, "c:1", patient=True) is None
        found = take_over(connection, second, FIRST, "b:1", patient=True)
        assert found == FirstNode(place=1, endpoint="b:1", places=(1, 2))
        assert take_over(connection, third, FIRST, "c:1", patient=True) == found
        # That one is lost as well.
        assert found is not None
        found = take_over(connection, third, found, "c:1", patient=True)
        assert found == FirstNode(place=2, endpoint="c:1", places=(2,))


def test_who_has_waited_for_its_turn_goes_first(database: Database) -> None:
    _, second, third = begin(database, "abc")
    with database.write() as connection:
        found = take_over(connection, third, FIRST, "c:1", patient=False)
        assert found == FirstNode(place=2, endpoint="c:1", places=(2,))
    with pytest.raises(LostRace), database.write() as connection:
        take_over(connection, second, FIRST, "b:1", patient=False)


@pytest.mark.parametrize("state", ["cancelled", "paused"])
def test_nobody_takes_over_what_was_interrupted(database: Database, parts: Parts, state: str) -> None:
    first, other = parts
    with database.write() as connection:
        change_state(connection, first.job, "rendering", state, "")
    with pytest.raises(LostRace), database.write() as connection:
        take_over(connection, other, FIRST, "b:1", patient=False)


def test_nobody_takes_over_an_attempt_that_is_over(database: Database, parts: Parts) -> None:
    other = parts[1]
    with database.write() as connection:
        connection.execute(update(attempts).values(ended=now()))
    with pytest.raises(LostRace), database.write() as connection:
        take_over(connection, other, FIRST, "b:1", patient=False)


@pytest.mark.parametrize("place", [0, 1])
def test_a_node_that_is_draining_leaves_its_group(database: Database, parts: Parts, place: int) -> None:
    part, rest = parts[place], parts[1 - place]
    with database.write() as connection:
        assert not depart(connection, part)
        set_draining(connection, part.node, True)
        assert depart(connection, part)
        assert has_left(connection, part) and not depart(connection, part)
        if place == 0:
            found = take_over(connection, rest, FIRST, "b:1", patient=True)
            assert found == FirstNode(place=1, endpoint="b:1", places=(1,))
        # The last one stays: the image goes on.
        set_draining(connection, rest.node, True)
        assert not depart(connection, rest)
        finish(connection, rest, "root", 3.0)
    assert job_of(database, rest).state == "done"


def test_a_node_stays_where_the_others_would_be_too_few(database: Database, parts: Parts) -> None:
    with database.write() as connection:
        connection.execute(update(jobs).values(memory=[[2, 100]]))
        connection.execute(update(nodes).values(vram_bytes=150))
        set_draining(connection, "b", True)
        assert not depart(connection, parts[1])
