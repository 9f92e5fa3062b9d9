"""Every change of state: allowed ones happen and are recorded, others raise and change nothing."""

import threading
from itertools import product

import pytest
from sqlalchemy import func, insert, select

from infra.database import Database, now
from jobs.db.state_machine import ALLOWED, STATES, change_state, change_states
from jobs.db.tables import events, jobs
from jobs.errors import IllegalChange, LostRace, UnknownJob


def add_job(database: Database, state: str = "queued", job: str = "j", fence: int = 0) -> None:
    with database.write() as connection:
        connection.execute(
            insert(jobs).values(
                id=job,
                digest=job,
                spec={},
                model="builtin",
                owner="me",
                queue="default",
                least_ranks=1,
                most_ranks=1,
                state=state,
                fence=fence,
                created=now(),
                changed=now(),
            )
        )


def state_of(database: Database, job: str = "j") -> str:
    with database.read() as connection:
        return connection.execute(select(jobs.c.state).where(jobs.c.id == job)).scalar_one()


def events_of(database: Database) -> list[str]:
    with database.read() as connection:
        rows = connection.execute(select(events).order_by(events.c.number))
        return [f"{row.old} > {row.new}: {row.reason} ({row.fence})" for row in rows]


@pytest.mark.parametrize(("old", "new"), list(product(STATES, STATES)))
def test_the_whole_table_of_changes(database: Database, old: str, new: str) -> None:
    add_job(database, old)
    if new in ALLOWED[old]:
        with database.write() as connection:
            change_state(connection, "j", old, new, "because")
        assert state_of(database) == new
        assert events_of(database) == [f"{old} > {new}: because (0)"]
    else:
        with database.write() as connection, pytest.raises(IllegalChange, match=f"from {old} to {new}"):
            change_state(connection, "j", old, new, "because")
        assert state_of(database) == old
        assert events_of(database) == []


def test_who_is_late_changes_nothing(database: Database) -> None:
    # J: queued > placing > rendering under fence 2; an attempt of fence 1 wakes up.
    add_job(database, "rendering", fence=2)
    with database.write() as connection, pytest.raises(LostRace, match="rendering under fence 2"):
        change_state(connection, "j", "rendering", "publishing", "late", expected_fence=1)
    with database.write() as connection, pytest.raises(LostRace, match="not placing"):
        change_state(connection, "j", "placing", "rendering", "later")
    assert state_of(database) == "rendering"
    assert events_of(database) == []


def test_of_many_jobs_those_in_the_old_state_are_changed(database: Database) -> None:
    # J: a, c: queued > placing; b has been cancelled, d was never there.
    for job, state in (("a", "queued"), ("b", "cancelled"), ("c", "queued")):
        add_job(database, state, job, fence=4)
    reasons = {job: f"on {job.upper()}" for job in ("d", "c", "b", "a")}
    with database.write() as connection:
        fences = change_states(connection, reasons, "queued", "placing", fence=jobs.c.fence + 1)
    assert fences == {"a": 5, "c": 5}
    assert [state_of(database, job) for job in "abc"] == ["placing", "cancelled", "placing"]
    assert events_of(database) == ["queued > placing: on A (5)", "queued > placing: on C (5)"]
    with database.write() as connection:
        assert change_states(connection, reasons, "queued", "placing") == {}
        with pytest.raises(IllegalChange, match="from done to queued"):
            change_states(connection, reasons, "done", "queued")


def test_values_and_expressions_are_set_with_the_state(database: Database) -> None:
    add_job(database)
    with database.write() as connection:
        change_state(connection, "j", "queued", "placing", "", fence=jobs.c.fence + 1, progress=0.5)
        change_state(
            connection, "j", "placing", "queued", "", expected_fence=1, fence=7, not_before=now() + 60
        )
    with database.read() as connection:
        row = connection.execute(select(jobs, now().label("moment"))).one()
    assert (row.fence, row.progress) == (7, 0.5)
    assert row.moment < row.not_before < row.moment + 61
    assert events_of(database) == ["queued > placing:  (1)", "placing > queued:  (7)"]


def test_an_unknown_job_is_said_to_be_unknown(database: Database) -> None:
    with database.write() as connection, pytest.raises(UnknownJob, match="nobody"):
        change_state(connection, "nobody", "queued", "placing", "x")


def test_of_many_at_once_one_wins(database: Database) -> None:
    add_job(database)
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def claim(number: int) -> None:
        start.wait()
        try:
            with database.write() as connection:
                change_state(connection, "j", "queued", "placing", f"claimed by {number}")
            outcomes.append("won")
        except LostRace:
            outcomes.append("lost")

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(events)).scalar_one() == 1


def test_every_state_but_done_can_be_left_and_all_can_be_reached() -> None:
    assert [state for state, following in ALLOWED.items() if not following] == ["done"]
    assert set().union(*ALLOWED.values()) == set(STATES)
