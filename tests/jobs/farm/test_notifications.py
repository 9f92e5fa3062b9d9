"""Notifications over a real Redis and a real RabbitMQ: sent, lost, doubled; the database decides."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.broker import check_broker_url, embedded_redis
from infra.errors import BadSetting
from jobs.node.tasks import WAKEUP_SOCKET, launch, make_app, notify, queue_of, wakeup_path
from tests.support.cli import start, wait_until
from tests.support.services import rabbitmq_server


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with (
        embedded_redis(tmp_path / "broker") if request.param == "redis" else rabbitmq_server(tmp_path) as url
    ):
        yield url


@pytest.fixture
def wakeup(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(wakeup_path(tmp_path, "n1")))
        server.settimeout(30)
        yield server


@pytest.fixture
def worker(tmp_path: Path, broker: str) -> Iterator[subprocess.Popen[bytes]]:
    arguments = ["-A", "jobs.node.tasks", "worker", "-Q", queue_of("n1"), "-P", "solo", "-l", "warning"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.node.celery_worker", str(os.getpid()), *arguments],
        env=os.environ | {WAKEUP_SOCKET: str(wakeup_path(tmp_path, "n1")), "CHORALE_BROKER_URL": broker},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield process
    process.kill()
    process.wait()


def test_a_notification_arrives_at_its_node_as_often_as_it_is_sent(
    broker: str, wakeup: socket.socket, worker: object
) -> None:
    app = make_app(broker)
    assert notify(app, [("n1", "attempt", 7), ("elsewhere", "other", 1), ("n1", "attempt", 7)]) == 0
    assert [wakeup.recv(100), wakeup.recv(100)] == [b"attempt 7"] * 2


def test_a_notification_without_a_broker_is_counted_not_raised(tmp_path: Path) -> None:
    app = make_app(f"redis+socket://{tmp_path}/nobody.sock")
    assert notify(app, [("n1", "attempt", 1)]) == 1


def test_an_agent_that_is_away_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAKEUP_SOCKET, str(tmp_path / "nobody.wakeup"))
    launch("attempt", 1)


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
