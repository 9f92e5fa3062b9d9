"""Launches over a real Redis and a real RabbitMQ: sent, lost, doubled, reordered, replayed; and Flower."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from amqp import AccessRefused
from sqlalchemy import select

from infra.broker import check_broker_url, embedded_redis
from infra.database import Database
from infra.errors import BadSetting, DatabaseUnreachable
from infra.settings import Settings
from jobs.db import leases
from jobs.db.claims import claim
from jobs.db.leases import DISPATCHER, hold_lease
from jobs.db.outcomes import fail
from jobs.db.schema import upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, jobs, members
from jobs.farm import Farm
from jobs.node import agent as agent_module
from jobs.node.agent import Agent
from jobs.node.agent_socket import ask
from jobs.node.metrics_server import MetricsServer
from jobs.node.supervisors import Supervisors
from jobs.node.tasks import LAUNCH, SCHEDULE, make_app, notify, queue_of, send
from jobs.scheduler.dispatcher import Notification, dispatch
from render.spec import Spec
from tests.support.cli import start, wait_until
from tests.support.machines import Machines
from tests.support.messages import an_hour_ago, captured, replay, results, worker_events
from tests.support.services import free_port, rabbitmq_server

TESTER = "tester"
FOREVER = 1e9


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> str:
    """Redis, unless a test asks for another one."""
    return str(request.getfixturevalue(getattr(request, "param", "redis")))


class Node:
    """An agent in a thread, with its real worker. Its supervisors are no processes; they only claim."""

    def __init__(self, folder: Path, broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.farm = Farm(
            settings=Settings(store_url=str(folder / "store")),
            database=Database(f"sqlite:///{folder / 'farm.db'}"),
            url=f"sqlite:///{folder / 'farm.db'}",
        )
        upgrade(self.farm.database)
        self.name = f"n{uuid4().hex[:8]}"
        """No message of another test is for it."""
        self.started: list[str] = []
        monkeypatch.setattr(agent_module, "Supervisors", self._supervisors)
        self.agent = Agent(
            farm=self.farm,
            name=self.name,
            slots=4,
            address="127.0.0.1",
            device="cpu",
            home=folder / "logs",
            metrics=MetricsServer(self.farm, self.name, "cpu", "off"),
            broker_url=broker,
        )
        self.thread = threading.Thread(target=self.agent.run)

    def _supervisors(self, *arguments: Any) -> Supervisors:
        node = self

        class Claiming(Supervisors):
            def start(self, attempt: str, slots: tuple[int, ...]) -> None:
                node.started.append(attempt)
                with node.farm.database.write() as connection:
                    assert claim(connection, attempt, node.name, f"supervisor of {attempt}") is not None

        return Claiming(*arguments)

    def submit(self, count: int) -> None:
        items = (
            BatchItem(row=n, custom_id=str(n), spec=Spec(prompt="a", seed=n, width=128, height=128))
            for n in range(count)
        )
        submit(self.farm.database, items, "batch", JobOptions(owner="me", ranks=1))

    def place(self) -> list[Notification]:
        """As the dispatcher does, but what it places is announced by nobody."""
        placed = dispatch(self.farm.database, TESTER, is_steady=lambda clock: False)
        self.keep_dispatching()
        return placed

    def keep_dispatching(self, seconds: float = FOREVER) -> None:
        with self.farm.database.write() as connection:
            assert hold_lease(connection, DISPATCHER, TESTER, seconds)


@pytest.fixture(autouse=True)
def _leases_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """No dispatcher's lease is as long as the one that the test keeps."""
    monkeypatch.setattr(leases, "CLOCK_SLACK_S", 2 * FOREVER)


@pytest.fixture
def node(tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node to which messages come, and that does not sweep of itself. The test is the dispatcher."""
    monkeypatch.setattr(agent_module, "_SWEEP_S", FOREVER)
    made = Node(tmp_path, broker, monkeypatch)
    made.keep_dispatching()
    made.thread.start()
    try:
        wait_until(lambda: made.agent._consuming, 60)
        yield made
    finally:
        made.agent.stop()
        made.thread.join()
        made.farm.database.close()


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_messages_that_are_lost_doubled_reordered_and_replayed_launch_each_attempt_once(
    node: Node, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(broker)
    node.submit(4)
    first, second, third, fourth = node.place()
    old = [captured(app, attempt, fence) for _, attempt, fence in (first, second)]
    with worker_events(app) as events:
        # The first one is lost, the third one doubled, and all are late.
        assert notify(app, [fourth, third, second, third]) == []
        wait_until(lambda: len(results(events, LAUNCH)) == 4, 60)
        told = [text.partition(" ")[0] for text in results(events, LAUNCH)]
        assert told == ["started", "started", "started", "a"]
        assert node.started == [fourth[1], third[1], second[1]]
        # What no message announced is found by the sweep.
        monkeypatch.setattr(agent_module, "_SWEEP_S", 0.1)
        node.agent._woken.set()
        wait_until(lambda: first[1] in node.started, 60)
        # The jobs are placed again, and the old messages come back: expired, as after an hour, and not.
        with node.farm.database.write() as connection:
            for _, attempt, _ in (first, second):
                fail(connection, attempt, "stopped", None, None)
        again = node.place()
        assert {fence for _, _, fence in again} == {2}
        wait_until(lambda: len(node.started) == 6, 60)
        for message in old:
            replay(app, message, node.name, expires=None)
            replay(app, message, node.name, expires=an_hour_ago())
        wait_until(lambda: len(results(events, LAUNCH)) == 6, 60)
        assert results(events, LAUNCH)[4:] == ["the attempt is over"] * 2
        wait_until(lambda: sum(event["type"] == "task-revoked" for event in events) == 2, 60)
    assert sorted(node.started) == sorted(each[1] for each in (first, second, third, fourth, *again))
    with node.farm.database.read() as connection:
        assert set(connection.execute(select(jobs.c.state)).scalars()) == {"placing"}


def test_a_message_of_another_node_or_fence_or_of_nobody_starts_nothing(node: Node, broker: str) -> None:
    app = make_app(broker)
    node.submit(1)
    ((_, attempt, fence),) = node.place()
    with worker_events(app) as events:
        for arguments in (("nobody", 1), (attempt, fence + 1), ("", -1), ([attempt], fence)):
            assert send(app, LAUNCH, queue_of(node.name), *arguments)
        wait_until(lambda: len(results(events, LAUNCH)) == 4, 60)
    assert results(events, LAUNCH) == ["this node has no part in such an attempt"] * 3 + ["unknown request"]
    assert node.started == []


def test_remote_control_answers_and_a_worker_that_dies_is_started_again(node: Node, broker: str) -> None:
    app = make_app(broker)

    worker = f"chorale@{node.name}"

    def queues() -> dict[str, Any]:
        return app.control.inspect([worker], timeout=10).active_queues() or {}

    wait_until(lambda: worker in queues(), 60)
    assert [queue["name"] for queue in queues()[worker]] == [queue_of(node.name)]
    assert node.agent._worker is not None and node.agent._worker._process is not None
    first = node.agent._worker._process.pid
    # While no message can reach the node, it polls.
    node.agent._worker._process.kill()
    node.submit(1)
    ((_, attempt, _),) = node.place()
    wait_until(lambda: node.started == [attempt], 60)
    wait_until(lambda: node.agent._consuming and node.agent._worker._process.pid != first, 60)


def test_a_new_job_is_placed_and_launched_by_messages_alone(
    node: Node, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_ROUND_S", FOREVER)
    monkeypatch.setattr(agent_module, "_LATE_S", FOREVER)
    node.keep_dispatching(0.0)
    app = make_app(broker)
    with worker_events(app) as events:
        # The round that is waited for just now has still the old length.
        wait_until(lambda: node.agent._dispatch_at > FOREVER / 2, 60)
        node.submit(1)
        assert send(app, SCHEDULE, queue_of(node.name))
        wait_until(lambda: len(node.started) == 1, 60)
        wait_until(lambda: results(events, LAUNCH) == ["started on slot 0"], 60)


def test_a_message_without_a_broker_is_told_and_not_raised(tmp_path: Path) -> None:
    app = make_app(f"redis+socket://{tmp_path}/nobody.sock")
    assert notify(app, [("n1", "attempt", 1)]) == [("n1", "attempt", 1)]
    assert not send(app, SCHEDULE, queue_of("n1"))


def test_no_error_of_the_brokers_transport_reaches_who_submits(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app("redis://localhost:1/0")

    def refuse(*_: object, **__: object) -> None:
        raise AccessRefused("no such user")

    monkeypatch.setattr(app, "send_task", refuse)
    assert not send(app, SCHEDULE, queue_of("n1"))


def test_rounds_on_a_slow_database_leave_time_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Node(tmp_path, "redis://localhost:1/0", monkeypatch).agent
    ended = []

    def slow(*_: object, **__: object) -> list[Notification]:
        time.sleep(0.01)
        ended.append(time.monotonic())
        return []

    monkeypatch.setattr(agent_module, "dispatch", slow)
    agent._dispatch()
    assert agent._dispatch_at >= ended[0] + agent_module._ROUND_S
    assert agent._dispatch_again_at >= ended[0]
    agent.farm.database.close()


def test_a_round_that_fails_is_followed_by_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Node(tmp_path, "redis://localhost:1/0", monkeypatch).agent
    agent._consuming, agent._sweep_by, agent._swept = True, float("inf"), FOREVER

    def unreachable(*_: object) -> None:
        raise DatabaseUnreachable("no database responds")

    monkeypatch.setattr(agent._lease, "renew", unreachable)
    assert not agent._round()
    assert agent._sweep_by == 0.0
    agent.farm.database.close()


def test_an_agent_that_is_away_harms_nothing(tmp_path: Path) -> None:
    assert "the agent does not answer" in ask(str(tmp_path / "nobody.agent"), {"task": "schedule"})


def test_a_worker_imports_no_torch() -> None:
    program = "import sys, jobs.node.celery_worker; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.slow
def test_flower_shows_the_nodes_and_the_launches_of_a_farm(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "broker") as url:
        port = free_port()
        words = ["--broker", url, "flower", "--address=127.0.0.1", f"--port={port}"]
        flower = subprocess.Popen(
            [sys.executable, "-m", "celery", *words],
            env=os.environ | {"FLOWER_UNAUTHENTICATED_API": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        farm = Machines(
            tmp_path, f"sqlite:///{tmp_path / 'farm.db'}", CHORALE_BROKER_URL=url, CHORALE_WARM_S="0"
        )

        def shown(what: str) -> Any:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{what}", timeout=30) as answer:
                    return json.load(answer)
            except OSError:
                return {}

        try:
            farm.boot("n1")
            # Flower may know a worker from its events before the worker has said what it consumes.
            queues = wait_until(
                lambda: shown("workers?refresh=true").get("chorale@n1", {}).get("active_queues"), 120
            )
            assert [queue["name"] for queue in queues] == [queue_of("n1")]
            farm.call("submit", "a red vase", "--size", "128x128", "--steps", "1", "--ranks", "1")
            wait_until(lambda: _launched(shown("tasks")), 120)
            (launched,) = _launched(shown("tasks"))
            assert launched["result"] == "'started on slot 0'"
            with Database(farm.environment["CHORALE_DATABASE_URL"]).read() as connection:
                (attempt,) = connection.execute(select(attempts.c.id)).scalars()
                assert connection.execute(select(members.c.claimed_by)).scalar_one() is not None
            assert attempt in launched["args"]
            farm.wait("done")
        finally:
            flower.terminate()
            flower.wait(30)
            farm.shut_down()


def _launched(tasks: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        task
        for task in tasks.values()
        # One that is only sent has no worker yet.
        if (task["name"], task["state"], task.get("worker")) == (LAUNCH, "SUCCESS", "chorale@n1")
    ]


def test_the_embedded_redis_is_ours_alone_and_goes_with_us(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "broker"):
        path = tmp_path / "broker" / "redis.sock"
        assert path.is_socket()
        assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
    assert not path.exists()


@pytest.mark.parametrize("url", ["nonsense", "sqla+sqlite:///x", "filesystem://", ""])
def test_brokers_that_lose_tasks_are_refused(url: str) -> None:
    with pytest.raises(BadSetting, match="broker_url"):
        check_broker_url(url)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_the_embedded_redis_ends_with_a_farm_that_is_killed(tmp_path: Path) -> None:
    farm = start("up", "--slots", "1", "--port", "0", XDG_DATA_HOME=str(tmp_path))
    path = tmp_path / "chorale" / "broker" / "redis.sock"

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    wait_until(answers, 30)
    farm.kill()
    farm.communicate(timeout=30)
    wait_until(lambda: not answers(), 20)
