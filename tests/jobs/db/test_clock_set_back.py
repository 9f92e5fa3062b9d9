"""The database's clock is set back by an hour: what was written before lies in the future, and nothing waits
for it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, select, update

from infra.database import Database, now
from infra.settings import Settings
from jobs.db.claims import claim
from jobs.db.follow_ups import add, begin, take_due
from jobs.db.leases import DISPATCHER, hold_lease
from jobs.db.nodes import list_nodes, register, take_lease
from jobs.db.outcomes import fail, finish
from jobs.db.rates import read_rates
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, follow_ups, jobs, leases, members, nodes, webhooks
from jobs.farm import Farm
from jobs.scheduler.dispatcher import Notification, dispatch
from jobs.webhooks.due import note_due
from render.spec import Spec

HOUR = 3600.0
INFO: dict[str, Any] = {"address": "127.0.0.1", "slots": 1, "device": "cpu", "vram_bytes": None}


def set_back(database: Database, *columns: Any) -> None:
    """As if the clock had been set back by an hour since these columns were written."""
    with database.write() as connection:
        for column in columns:
            connection.execute(update(column.table).values({column: column + HOUR}))


def submitted(database: Database) -> str:
    with database.write() as connection:
        register(connection, "a", **INFO)
    item = BatchItem(row=1, custom_id="1", spec=Spec(prompt="a vase", width=128, height=128))
    submit(database, [item], "test", JobOptions(owner="me"))
    with database.read() as connection:
        return str(connection.execute(select(jobs.c.id)).scalar_one())


def place(database: Database, clock_is_steady: bool = True) -> list[Notification]:
    """A round of dispatching, with a node that is up."""
    with database.write() as connection:
        register(connection, "a", **INFO)
    return dispatch(database, "a", is_steady=lambda clock: clock_is_steady)


def state_of(database: Database) -> tuple[str, int]:
    with database.read() as connection:
        row = connection.execute(select(jobs.c.state, jobs.c.losses)).one()
    return row.state, row.losses


def test_a_dead_node_is_down_and_its_name_is_free(database: Database) -> None:
    submitted(database)
    set_back(database, nodes.c.lease_until)
    assert dispatch(database, "a") == [], "nothing is placed on it"
    with database.write() as connection:
        assert [node["state"] for node in list_nodes(connection)] == ["down"]
        assert take_lease(connection, "a", "another agent", **INFO) is None


def test_a_live_node_keeps_its_name(database: Database) -> None:
    with database.write() as connection:
        take_lease(connection, "a", "mine", **INFO)
        holder = take_lease(connection, "a", "another agent", **INFO)
        assert holder is not None and holder.agent == "mine"


def test_another_dispatcher_takes_over_from_a_dead_one(database: Database) -> None:
    submitted(database)
    with database.write() as connection:
        assert hold_lease(connection, DISPATCHER, "dead", 6.5)
    assert place(database) == []
    set_back(database, leases.c.until)
    assert [node for node, *_ in place(database)] == ["a"]


def test_an_attempt_of_a_dead_supervisor_is_lost_once_the_clock_is_steady(database: Database) -> None:
    submitted(database)
    ((node, attempt, _),) = place(database)
    with database.write() as connection:
        assert claim(connection, attempt, node, "s") is not None
    set_back(database, members.c.lease_until)
    place(database, clock_is_steady=False)
    assert state_of(database) == ("placing", 0), "its supervisor may be about to renew it"
    place(database)
    assert state_of(database) == ("placing", 1), "lost, and placed again"


def test_a_group_that_never_met_is_given_up(database: Database) -> None:
    submitted(database)
    place(database)
    set_back(database, attempts.c.created)
    place(database)
    assert state_of(database) == ("queued", 1)


def test_the_next_try_does_not_wait_for_an_hour_and_a_start_time_does(database: Database) -> None:
    job = submitted(database)
    ((_, attempt, _),) = place(database)
    with database.write() as connection:
        fail(connection, attempt, "it failed", None)
    assert place(database) == [], "it waits for its next try"
    set_back(database, jobs.c.not_before)
    assert len(place(database)) == 1
    with database.write() as connection:
        connection.execute(update(attempts).values(ended=now()))
        start = {"state": "queued", "attempts": 0, "losses": 0, "not_before": now() + HOUR}
        connection.execute(update(jobs).where(jobs.c.id == job).values(**start))
    assert place(database) == []


def test_a_follow_up_of_a_dead_worker_is_done_by_another(database: Database) -> None:
    with database.write() as connection:
        add(connection, "one", "report", {})
        assert take_due(connection, ["report"]) == ["one"] and take_due(connection, ["report"]) == []
        assert begin(connection, "one", 120.0) is not None
        assert begin(connection, "one", 120.0) is None
    set_back(database, follow_ups.c.due)
    with database.write() as connection:
        assert take_due(connection, ["report"]) == [], "a worker is at it"
    set_back(database, follow_ups.c.claimed_until, *[follow_ups.c.claimed_until] * 6)
    with database.write() as connection:
        assert take_due(connection, ["report"]) == ["one"]
        assert begin(connection, "one", 120.0) is not None


def test_an_image_that_took_less_than_no_time_gives_no_rate(database: Database) -> None:
    job = submitted(database)
    ((node, attempt, _),) = place(database)
    with database.write() as connection:
        assignment = claim(connection, attempt, node, "s")
        assert assignment is not None
        change_state(connection, job, "placing", "rendering", "", expected_fence=1)
    set_back(database, attempts.c.created)
    with database.write() as connection:
        finish(connection, assignment, "root", 1.0)
        assert read_rates(connection) == {}
    assert state_of(database)[0] == "done"


@pytest.mark.parametrize("ahead", [0.0, HOUR])
def test_a_webhook_tells_of_what_ends_after_the_clock_was_set_back(database: Database, ahead: float) -> None:
    farm, job = Farm(settings=Settings(), database=database, url=""), submitted(database)
    values = {"id": "w", "url": "https://x.example", "kind": "json", "per": "job", "secret": "s"}
    with database.write() as connection:
        connection.execute(insert(webhooks).values(**values, created=now(), told=now() + ahead))
    assert note_due(farm) == []
    with database.write() as connection:
        # Both may happen within the same millisecond.
        connection.execute(update(webhooks).values(told=webhooks.c.told - 0.01))
        change_state(connection, job, "queued", "cancelled", "")
    assert len(note_due(farm)) == 1
    assert note_due(farm) == [], "once"
