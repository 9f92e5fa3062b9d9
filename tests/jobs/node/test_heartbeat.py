"""The heartbeat's thread outlives everything that a database does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import select, update

from infra.database import Database, now
from jobs.db.claims import claim
from jobs.db.nodes import register
from jobs.db.records import Assignment
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs, members
from jobs.node import heartbeat as module
from jobs.node.heartbeat import Heartbeat
from jobs.scheduler.dispatcher import dispatch
from render.spec import Spec
from tests.support.cli import wait_until


@pytest.fixture
def part(database: Database) -> Assignment:
    """A part that a supervisor has claimed."""
    with database.write() as connection:
        register(connection, "a", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    spec = Spec(prompt="a vase", seed=1, width=128, height=128)
    submit(database, [BatchItem(row=1, custom_id="1", spec=spec)], "test", JobOptions(owner="me"))
    ((node, attempt, _),) = dispatch(database, "a")
    with database.write() as connection:
        found = claim(connection, attempt, node, "s")
    assert found is not None
    return found


@contextmanager
def beating(database: Database, part: Assignment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heartbeat]:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    made = Heartbeat(database, part)
    made.start()
    yield made
    made.stop()


def lease_of(database: Database) -> float:
    with database.read() as connection:
        return float(connection.execute(select(members.c.lease_until - now())).scalar_one())


def expire(database: Database) -> None:
    with database.write() as connection:
        connection.execute(update(members).values(lease_until=0.0))


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_database_that_is_read_only_for_a_while_ends_no_heartbeat(
    database: Database, postgres_url: str, part: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_reads(on: bool) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as server:
            server.execute("set default_transaction_read_only = off")
            server.execute(f"alter system set default_transaction_read_only = {'on' if on else 'off'}")
            server.execute("select pg_reload_conf()")

    failures: list[Exception] = []
    beat = module.heartbeat

    def noted(*arguments: Any) -> Any:
        try:
            return beat(*arguments)
        except Exception as exc:
            failures.append(exc)
            raise

    monkeypatch.setattr(module, "heartbeat", noted)
    try:
        with beating(database, part, monkeypatch) as heart:
            wait_until(lambda: lease_of(database) > 0)
            only_reads(True)
            wait_until(lambda: len(failures) > 3)
            only_reads(False)
            expire(database)
            wait_until(lambda: lease_of(database) > 0)
            assert heart.lost is None
    finally:
        only_reads(False)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("error", [RuntimeError("never seen before"), KeyError("x"), MemoryError()])
def test_no_error_ends_the_thread(
    database: Database, part: Assignment, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, tries, beat = threading.Event(), [0], module.heartbeat
    failing.set()

    def broken(*arguments: Any) -> Any:
        tries[0] += 1
        if failing.is_set():
            raise error
        return beat(*arguments)

    monkeypatch.setattr(module, "heartbeat", broken)
    with beating(database, part, monkeypatch) as heart:
        wait_until(lambda: tries[0] > 3)
        assert heart.lost is None
        failing.clear()
        expire(database)
        wait_until(lambda: lease_of(database) > 0)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_errors_for_too_long_give_the_part_up(
    database: Database, part: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("for good")

    monkeypatch.setattr(module, "heartbeat", broken)
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    with beating(database, part, monkeypatch) as heart:
        assert wait_until(lambda: heart.lost) == "for good"


def changes(values: dict[str, Any]) -> Callable[[Database], None]:
    def change(database: Database) -> None:
        with database.write() as connection:
            connection.execute(update(jobs).values(**values))

    return change


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("values", [{"fence": 9}, {"state": "cancelled"}])
def test_a_job_that_went_another_way_is_given_up(
    database: Database, part: Assignment, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes(values)(database)
    with beating(database, part, monkeypatch) as heart:
        assert "is over, or its job went another way" in wait_until(lambda: heart.lost)
