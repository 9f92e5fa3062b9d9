"""Ranks that are forked for torchrun; the rank here is a stub that imports nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from render.launch.fork_server import SOCKET, listen_for_proxies
from tests.support.cli import wait_until

SERVER = f"""
import os, socket, sys, time
from pathlib import Path
from render.launch.fork_server import ForkServer

def run_rank():
    Path("started-" + os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(float(os.environ["SECONDS"]))
    return 5

ForkServer(socket.socket(fileno=int(os.environ["{SOCKET}"])), Path("."), run_rank).serve()
"""
Process = subprocess.Popen[bytes]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts processes of one group."""
    made: list[Process] = []

    def start(*words: str, pass_fds: tuple[int, ...] = (), **environment: str) -> Process:
        code = [sys.executable, *words]
        made.append(subprocess.Popen(code, cwd=tmp_path, env=os.environ | environment, pass_fds=pass_fds))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


@pytest.fixture
def server(tmp_path: Path, started: Callable[..., Process]) -> Process:
    """A fork server that listens in the test's folder."""
    with listen_for_proxies(tmp_path) as socket:
        number = socket.fileno()
        return started("-c", SERVER, pass_fds=(number,), **{SOCKET: str(number)})


def proxy_of(
    started: Callable[..., Process], directory: Path, rank: int, seconds: float
) -> tuple[int, Process]:
    """(pid of the rank, proxy), once the rank has begun."""
    proxy = started("-m", "render.launch.fork_client", str(directory), RANK=str(rank), SECONDS=str(seconds))
    note = directory / f"started-{rank}"
    return int(wait_until(lambda: note.exists() and note.read_text())), proxy


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_ranks_get_the_environments_of_their_proxies_and_end_them(
    tmp_path: Path, started: Callable[..., Process], server: Process
) -> None:
    proxies = [proxy_of(started, tmp_path, rank, 0.1)[1] for rank in (7, 8)]
    assert [proxy.wait(30) for proxy in proxies] == [5, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_rank_ends_with_its_proxy_and_the_others_stay(
    tmp_path: Path, started: Callable[..., Process], server: Process, number: signal.Signals
) -> None:
    first, proxy = proxy_of(started, tmp_path, 0, 60)
    second, other = proxy_of(started, tmp_path, 1, 60)
    proxy.send_signal(number)
    wait_until(lambda: gone(first))
    assert other.poll() is None and not gone(second)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_proxy_ends_by_the_signal_that_ended_its_rank(
    tmp_path: Path, started: Callable[..., Process], server: Process, number: signal.Signals
) -> None:
    rank, proxy = proxy_of(started, tmp_path, 0, 60)
    _, other = proxy_of(started, tmp_path, 1, 60)
    os.kill(rank, number)
    assert proxy.wait(30) == -number
    assert other.poll() is None


def test_ranks_and_proxies_end_with_the_server(
    tmp_path: Path, started: Callable[..., Process], server: Process
) -> None:
    rank, proxy = proxy_of(started, tmp_path, 0, 60)
    server.kill()
    assert proxy.wait(30) == -signal.SIGKILL
    wait_until(lambda: gone(rank))


def test_a_rank_that_is_started_again_is_forked_again(
    tmp_path: Path, started: Callable[..., Process], server: Process
) -> None:
    first, proxy = proxy_of(started, tmp_path, 0, 0.1)
    assert proxy.wait(30) == 5
    (tmp_path / "started-0").unlink()
    second, proxy = proxy_of(started, tmp_path, 0, 0.1)
    assert proxy.wait(30) == 5 and first != second


def test_without_a_server_nothing_is_started(tmp_path: Path, started: Callable[..., Process]) -> None:
    listen_for_proxies(tmp_path).close()
    assert started("-m", "render.launch.fork_client", str(tmp_path)).wait(30) == -signal.SIGKILL
