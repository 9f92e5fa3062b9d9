"""Long jobs start first, and with more ranks, where the end of a night depends on them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from infra.database import Database, now
from jobs.db import leases
from jobs.db.nodes import register
from jobs.db.rates import record_rate
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs, nodes
from jobs.scheduler.candidates import most_of_an_owner
from jobs.scheduler.dispatcher import dispatch, read_surroundings
from jobs.scheduler.pending_jobs import HEAD_START_S, PendingJob, WaitingJobs, long_jobs_first
from jobs.scheduler.placement import Node, place
from jobs.simulation.outcome import Outcome
from jobs.simulation.scenario import Scenario
from jobs.simulation.setup import from_scenario
from render.spec import Spec

FOUR = [Node(name="a", slots=4)]


def job(name: str, seconds: float, waited: float = 0.0, **more: Any) -> PendingJob:
    return PendingJob(job=name, estimated_seconds=seconds, work=seconds, waited=waited, **more)


def started(pending: list[PendingJob], nodes: list[Node] = FOUR) -> list[str]:
    return [group.job for group in place(nodes, [], pending, []).placed]


def test_a_job_that_would_end_last_and_alone_starts_first() -> None:
    short = [job(f"s{n}", 100, waited=10) for n in range(8)]
    assert started([*short, job("long", 1000)])[0] == "long"


def test_a_job_that_is_small_beside_what_is_left_keeps_its_place() -> None:
    short = [job(f"s{n}", 100, waited=10) for n in range(500)]
    assert "long" not in started([*short, job("long", 1000)])


@pytest.mark.parametrize(("owner", "ranks"), [("", 4), ("other", 3)])
def test_a_job_that_ends_last_takes_more_ranks_but_leaves_a_slot_to_another_owner(
    owner: str, ranks: int
) -> None:
    pending = [job("long", 1000, most=4), job("s", 10, owner=owner)]
    assert place(FOUR, [], pending, []).placed[0].slots == {"a": ranks}


def test_one_slot_renders_in_the_order_of_submission() -> None:
    pending = [job("s", 1, waited=10), job("long", 1000)]
    assert started(pending, [Node(name="a", slots=1)]) == ["s"]


def test_a_long_job_passes_no_higher_priority_and_nobody_for_ever() -> None:
    urgent = [job(f"u{n}", 1, priority=51) for n in range(4)]
    assert "long" not in started([*urgent, job("long", 1000)])
    older = [job(f"o{n}", 1, waited=HEAD_START_S + 3700) for n in range(4)]
    assert "long" not in started([*older, job("long", 1000)])
    assert started([*older[:3], job("long", 1000)])[-1] == "long"


@given(
    st.lists(st.builds(job, st.uuids().map(str), st.floats(0, 1e6), st.floats(0, 1e6))), st.integers(1, 64)
)
def test_only_the_waiting_changes_and_never_to_less(pending: list[PendingJob], slots: int) -> None:
    left = sum(each.slot_seconds or 0.0 for each in pending)
    after = long_jobs_first(pending, left, slots)
    assert [each.job for each in after] == [each.job for each in pending]
    assert all(new.waited >= old.waited for old, new in zip(pending, after, strict=True))
    most = max((each.waited for each in pending), default=0.0)
    assert all(each.waited <= most + 1 for each in after)


@given(
    st.lists(st.tuples(st.sampled_from("xy"), st.sampled_from("ab"), st.integers(1, 3), st.integers(50, 51))),
    st.integers(0, 6),
    st.integers(0, 4),
)
def test_jobs_counted_by_shape_are_those_walked_through(drawn: list[Any], popped: int, limit: int) -> None:
    pending = [
        PendingJob(job=str(n), queue=queue, owner=owner, least=least, most=4, priority=priority, waited=-n)
        for n, (queue, owner, least, priority) in enumerate(drawn)
    ]
    waiting = WaitingJobs(pending, lambda each: -each.waited)
    gone = {waiting.pop().job for _ in range(min(popped, len(pending)))}
    fitting = [each for each in pending if each.job not in gone and each.priority >= 51 and each.least <= 2]
    expected = len([each for each in fitting if each.queue == "y"])
    expected += min(limit, len([each for each in fitting if each.queue == "x"]))
    assert sum(count for _, count in waiting.startable(51, lambda tags: 2, {"x": limit})) == expected


def test_the_longest_job_is_found_behind_a_thousand(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that a lease of an hour is none from before the clock was set back.
    monkeypatch.setattr(leases, "CLOCK_SLACK_S", 3600.0)
    with database.write() as connection:
        for name in ("a", "b"):
            register(connection, name, address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
        connection.execute(update(nodes).values(lease_until=now() + 3600))
    count = 2 * most_of_an_owner(2)
    specs = [Spec(prompt="a vase", seed=n, width=128, height=128) for n in range(count)]
    items = [BatchItem(row=n, custom_id=str(n), spec=spec) for n, spec in enumerate(specs)]
    submit(database, items, "test", JobOptions(owner="me"))
    with database.write() as connection:
        last = connection.execute(
            select(jobs.c.id).order_by(jobs.c.created.desc(), jobs.c.id.desc())
        ).scalar()
        connection.execute(update(jobs).values(work=1.0))
        connection.execute(update(jobs).where(jobs.c.id == last).values(work=1000.0))
        model = connection.execute(select(func.min(jobs.c.model))).scalar_one()
        record_rate(connection, model, "cpu", 1.0, 1.0)
    with database.read() as connection:
        farm = read_surroundings(connection)
    assert farm.queued_s == pytest.approx(count - 1 + 1000)
    assert farm.place().placed[0].job == last
    dispatch(database, "a")
    with database.read() as connection:
        assert connection.execute(select(jobs.c.state).where(jobs.c.id == last)).scalar_one() == "placing"


def night(count: int, nodes: int = 2) -> Outcome:
    """Small images are submitted before the large ones, which take as long as the whole night should."""
    model = {"native_size": 512, "guidance_scale": 0, "evaluation_s": 1.0}
    jobs_ = [
        {"model": "m", "size": size, "steps": 10, "guidance_scale": 0, "count": count, "ranks": 1}
        for size in ("512x512", "1024x1024", "2048x2048")
    ]
    parts: dict[str, Any] = {"nodes": [{"count": nodes, "slots": 8}], "models": {"m": model}, "jobs": jobs_}
    return from_scenario(Scenario.model_validate(parts | {"round_s": 0})).run()


def test_a_night_whose_large_images_come_last_ends_little_later_than_its_work_allows() -> None:
    outcome = night(12)
    longest = outcome.makespan_s / outcome.lower_bound_s
    assert outcome.done == 36
    assert longest < 1.35, "in the order of submission it is 1.6"
