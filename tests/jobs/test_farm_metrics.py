"""The farm-wide gauges, as the database has them."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select, update

from infra.database import Database, now
from infra.errors import DatabaseUnreachable
from infra.metrics import FARM_GAUGES
from jobs.db.nodes import register, set_draining, sign_off
from jobs.db.queues import set_queue
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs, nodes, queues, rates
from jobs.farm_metrics import FarmMetrics, read_gauges
from jobs.scheduler.dispatcher import dispatch
from render.spec import Spec
from tests.support.cli import wait_until

HOUR = 3600.0
Gauges = dict[tuple[str, frozenset[str]], float]


def read(database: Database) -> Gauges:
    with database.read() as connection:
        return {(name, frozenset(labels.values())): value for name, labels, value in read_gauges(connection)}


def of(gauges: Gauges, name: str, *labels: str) -> float | None:
    return gauges.get((f"chorale_{name}", frozenset(labels)))


def queue_up(database: Database, count: int, queue: str, **more: float) -> None:
    items = (
        BatchItem(row=n, custom_id=str(n), spec=Spec(prompt=f"{queue} {n}", width=128, height=128))
        for n in range(count)
    )
    submit(database, items, queue, JobOptions(owner="anna", queue=queue, ranks=1, **more))


def moment(database: Database) -> float:
    with database.read() as connection:
        return float(connection.execute(select(now())).scalar_one())


SICK = [{"check": "home", "text": "home: /x is full"}]


def test_queues_nodes_and_slots_are_counted(database: Database) -> None:
    with database.write() as connection:
        for name in ("a", "b", "gone", "lost", "old"):
            register(connection, name, address="127.0.0.1", slots=2, device="cpu", agent=name)
        register(connection, "sick", address="127.0.0.1", slots=2, device="cpu", problems=SICK)
        sign_off(connection, "gone", "gone")
        set_draining(connection, "b", True)
        for name, ago in (("lost", HOUR), ("old", 48 * HOUR)):
            away = update(nodes).where(nodes.c.name == name).values(lease_until=now() - ago)
            connection.execute(away)
    queue_up(database, 3, "night")
    assert len(dispatch(database, "a")) == 2
    with database.write() as connection:
        waiting = jobs.c.state == "queued"
        connection.execute(update(jobs).where(waiting).values(created=jobs.c.created - HOUR))
    gauges = read(database)
    assert [of(gauges, "node_up", name) for name in ("a", "b", "lost")] == [1, 1, 0]
    assert of(gauges, "node_up", "gone") is None and of(gauges, "node_up", "old") is None
    assert (of(gauges, "slots", "a"), of(gauges, "slots_free", "a")) == (2, 0)
    assert of(gauges, "slots", "b") is None, "it takes nothing more"
    assert (of(gauges, "node_up", "sick"), of(gauges, "slots", "sick")) == (1, None)
    assert of(gauges, "node_unhealthy", "sick", "home") == 1
    assert [of(gauges, "node_unhealthy", *each) for each in (("sick", "gpu"), ("a", "home"))] == [0, 0]
    assert (of(gauges, "queue_depth", "night"), of(gauges, "queue_running", "night")) == (1, 2)
    oldest = of(gauges, "queue_oldest_seconds", "night")
    assert oldest is not None and HOUR <= oldest < HOUR + 600
    assert of(gauges, "jobs_ended", "night", "done") == 0
    assert of(gauges, "queue_left_seconds", "night") is None, "nobody knows how long they take"


def test_needed_slots_follow_the_queues_own_windows(database: Database) -> None:
    """What KEDA scales by: nothing while the window is closed, but for what still runs."""
    at = moment(database)
    opens, closes = (f"{datetime.fromtimestamp(at + hours * HOUR, UTC):%H:%M}" for hours in (2, 4))
    with database.write() as connection:
        register(connection, "a", address="127.0.0.1", slots=2, device="cpu", vram_bytes=None)
    queue_up(database, 3, "night")
    assert len(dispatch(database, "a")) == 2
    queue_up(database, 4, "few")
    queue_up(database, 5, "shut")

    def needs() -> dict[str, tuple[float | None, float | None]]:
        gauges = read(database)
        names = ("night", "few", "shut")
        return {
            name: (of(gauges, "queue_open", name), of(gauges, "queue_slots_needed", name)) for name in names
        }

    assert needs() == {"night": (1, 3), "few": (1, 4), "shut": (1, 5)}
    with database.write() as connection:
        set_queue(connection, "night", {"time_window": f"{opens}-{closes} UTC"})
        set_queue(connection, "few", {"group_limit": 2})
        set_queue(connection, "shut", {"paused": True})
    assert needs() == {"night": (0, 2), "few": (1, 2), "shut": (0, 0)}
    there = ZoneInfo("America/New_York")
    opened, closes = (f"{datetime.fromtimestamp(at + hours * HOUR, there):%H:%M}" for hours in (-1, 1))
    with database.write() as connection:
        set_queue(connection, "night", {"time_window": f"{opened}-{closes} {there.key}"})
    assert needs()["night"] == (1, 3)


def test_estimates_and_deadlines_follow_the_measured_rates(database: Database) -> None:
    with database.write() as connection:
        register(connection, "a", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    queue_up(database, 2, "q", deadline=moment(database) + HOUR)
    with database.write() as connection:
        (model,) = connection.execute(select(jobs.c.model).distinct()).scalars()
        work = sum(connection.execute(select(jobs.c.work)).scalars())
        pace = 2 * HOUR
        connection.execute(rates.insert().values(model=model, device="cpu", work=work, slot_seconds=pace))
    gauges = read(database)
    assert of(gauges, "queue_left_seconds", "q") == pytest.approx(2 * HOUR, abs=1)
    assert of(gauges, "queue_deadlines_missed", "q") == 2


@pytest.mark.parametrize(
    ("waited_h", "overdue_h"),
    [
        (3, 0),  # its first window has just opened
        (22, 0),  # it came in the middle of one, and that was not a whole one
        (27, 20),  # yesterday's was a whole one
        (50, 44),  # and the one before
    ],
)
def test_a_job_is_overdue_once_a_whole_window_has_passed(
    database: Database, waited_h: float, overdue_h: float
) -> None:
    """The window opens now, as every day, for four hours."""
    at = moment(database)
    opens, closes = (f"{datetime.fromtimestamp(at + hours * HOUR, UTC):%H:%M}" for hours in (0, 4))
    with database.write() as connection:
        set_queue(connection, "q", {"time_window": f"{opens}-{closes} UTC"})
    queue_up(database, 1, "q")
    with database.write() as connection:
        connection.execute(update(jobs).values(created=now() - waited_h * HOUR))
    overdue = of(read(database), "queue_overdue_seconds", "q")
    assert overdue == pytest.approx(overdue_h * HOUR, abs=300)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_scrapes_read_the_database_seldom_and_never_wait_for_long(database: Database) -> None:
    looks, gate = [0], threading.Event()

    class Slow(Database):
        def __init__(self) -> None:
            self.engine = database.engine

        def read(self):
            looks[0] += 1
            gate.wait(60)
            return database.read()

    gauges = FarmMetrics(Slow())
    assert gauges() == [], "the database does not answer"
    gate.set()
    wait_until(gauges)
    assert all(gauges() for _ in range(50))
    assert looks == [1]
    assert {name for name, _, _ in gauges()} <= {series.name for series in FARM_GAUGES}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_that_is_away_is_told_and_nothing_old_is_shown(database: Database) -> None:
    class Away(Database):
        def __init__(self) -> None:
            pass

        def read(self):
            raise DatabaseUnreachable("away")

    assert wait_until(FarmMetrics(Away())) == [("chorale_database_up", {}, 0.0)]
    with database.write() as connection:
        connection.execute(queues.delete())
    assert ("chorale_database_up", {}, 1.0) in wait_until(FarmMetrics(database))
