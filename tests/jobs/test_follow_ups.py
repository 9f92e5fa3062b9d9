"""Follow-ups are done once: without a broker, and as Celery tasks that are doubled, replayed and retried."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from infra.broker import embedded_redis
from infra.database import Database, now
from infra.settings import Settings
from jobs.db import follow_ups as queue
from jobs.db.schema import upgrade
from jobs.db.tables import follow_ups
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up, kinds_here
from jobs.node.follow_up_rounds import FollowUpRounds
from jobs.node.tasks import FOLLOW_UP, FOLLOW_UP_QUEUE, make_app, send
from jobs.node.workers import follow_up_worker
from jobs.report_delivery import REPORT
from jobs.unneeded import GC
from tests.support.cli import wait_until
from tests.support.messages import results, worker_events

SCOPE = {"queue": None, "batch": None, "since": 0.0}


def add(database: Database, id: str, kind: str, payload: dict[str, Any]) -> None:
    with database.write() as connection:
        queue.add(connection, id, kind, payload)


def report(database: Database, id: str) -> None:
    add(database, id, REPORT, {"title": f"batch {id}", "scope": SCOPE, "delivered": []})


def row(database: Database, id: str) -> Any:
    with database.read() as connection:
        return connection.execute(select(follow_ups).where(follow_ups.c.id == id)).one()


def due(database: Database) -> list[str]:
    with database.write() as connection:
        return queue.take_due(connection, [REPORT, GC])


def test_one_is_announced_until_it_has_ended_and_begun_by_one_worker_at_a_time(database: Database) -> None:
    report(database, "a")
    report(database, "a")
    assert due(database) == ["a"] and due(database) == []
    with database.write() as connection:
        # The message was lost.
        connection.execute(update(follow_ups).values(due=now() - 1))
    assert due(database) == ["a"]
    with database.write() as connection:
        assert queue.begin(connection, "a", 60) is not None
        assert queue.begin(connection, "a", 60) is None
        connection.execute(update(follow_ups).values(due=now() - 1))
    assert due(database) == [], "a worker is at it"
    with database.write() as connection:
        # That worker has died.
        connection.execute(update(follow_ups).values(claimed_until=now() - 1))
    assert due(database) == ["a"]
    with database.write() as connection:
        assert queue.begin(connection, "a", 60) is not None
        queue.end(connection, "a", "done")
        connection.execute(update(follow_ups).values(due=now() - 1, claimed_until=None))
        assert queue.begin(connection, "a", 60) is None
    assert due(database) == []


def test_one_that_fails_is_tried_later_each_time_and_given_up_at_last(database: Database) -> None:
    report(database, "a")
    delays = []
    for _ in range(queue.MAX_TRIES):
        with database.write() as connection:
            assert queue.begin(connection, "a", 60) is not None
            delays.append(queue.fail(connection, "a", "no route"))
    assert delays == [5, 10, 20, 40, 80, 160, 240, None]
    assert row(database, "a").reason == "gave up after 8 tries: no route"
    assert due(database) == []


def test_what_this_process_cannot_do_is_left_to_others(database: Database) -> None:
    farm = Farm(settings=Settings(), database=database, url="")
    report(database, "a")
    FollowUpRounds(farm, None, None).look()
    # The worker of a node without a webhook may get the message of one that has it.
    result = do_follow_up(farm, "a")
    assert (result.text.partition(":")[0], result.retry_s) == ("left to others", None)
    assert REPORT not in kinds_here(farm) and GC in kinds_here(farm)
    assert (row(database, "a").ended, row(database, "a").tries) == (None, 0)
    assert due(database) == ["a"]
    add(database, "b", "of a newer version", {})
    assert do_follow_up(farm, "b").text == do_follow_up(farm, "no such").text
    assert row(database, "b").ended is None


def test_without_a_broker_the_agent_cleans_up_itself(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    log = tmp_path / "chorale" / "logs" / "0123-0001-n1.log"
    log.parent.mkdir(parents=True)
    log.write_text("old")
    farm = Farm(settings=Settings(store_url=str(tmp_path / "images")), database=database, url="")
    add(database, "gc:1", GC, {"older_than_days": 0.0})
    FollowUpRounds(farm, None, None).look()
    assert not log.exists()
    assert row(database, "gc:1").reason == "deleted 1 item, 3 Bytes"


@pytest.fixture
def hook() -> Iterator[HTTPServer]:
    """A webhook that counts what it gets; it takes nothing whose text names `refused`."""

    class Hook(BaseHTTPRequestHandler):
        got: ClassVar[list[str]] = []

        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
            Hook.got.append(text)
            self.send_response(500 if "refused" in text else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_celery_worker_delivers_a_report_once_and_retries_one_that_fails(
    tmp_path: Path, hook: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{hook.server_port}/"
    monkeypatch.setenv("CHORALE_REPORT_WEBHOOK", url)
    database = Database(f"sqlite:///{tmp_path / 'farm.db'}")
    upgrade(database)
    farm = Farm(settings=Settings(report_webhook=SecretStr(url)), database=database, url="")
    report(database, "taken")
    report(database, "refused")
    got: list[str] = hook.RequestHandlerClass.got  # type: ignore[attr-defined]
    with embedded_redis(tmp_path / "redis") as broker:
        app = make_app(broker)
        worker = follow_up_worker("n1", tmp_path, broker, f"sqlite:///{tmp_path / 'farm.db'}")
        with worker_events(app) as events:
            try:
                FollowUpRounds(farm, app, worker).look()
                wait_until(lambda: row(database, "taken").ended, 60)
                for _ in range(2):
                    assert send(app, FOLLOW_UP, FOLLOW_UP_QUEUE, "taken")
                wait_until(lambda: len(results(events, FOLLOW_UP)) == 3, 60)
                wait_until(lambda: any(event["type"] == "task-retried" for event in events), 60)
            finally:
                worker.stop()
    again = "ended already, or another worker is at it"
    assert sorted(results(events, FOLLOW_UP)) == [again] * 2 + [
        "the report of batch taken was delivered by webhook"
    ]
    assert sum("taken" in text for text in got) == 1
    assert row(database, "refused").tries >= 1 and row(database, "refused").ended is None
    database.close()
