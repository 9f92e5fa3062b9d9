"""Ranks that start before torchrun starts them; the rank here is a stub that imports nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from render.launch.parent_death import PARENT
from render.launch.preloaded_rank import PRELOADED_SOCKET, listen_for_proxy
from tests.support.cli import wait_until

RANK = """
import os, sys, time
from render.launch.preloaded_rank import PreloadedRank
rank = PreloadedRank.begin(lambda: None)
open("started", "a").write(os.environ["RANK"])
time.sleep(float(sys.argv[1]))
rank.end(5)
os._exit(5)
"""
Process = subprocess.Popen[bytes]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts processes of one group."""
    made: list[Process] = []

    def start(*words: str, pass_fds: tuple[int, ...] = (), **environment: str) -> Process:
        code = [sys.executable, *words]
        given = os.environ | {"LOCAL_RANK": "0", PARENT: str(os.getpid())} | environment
        made.append(subprocess.Popen(code, cwd=tmp_path, env=given, pass_fds=pass_fds))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


def pair(started: Callable[..., Process], directory: Path, seconds: float) -> tuple[Process, Process]:
    """(rank, proxy), once the rank has begun."""
    with listen_for_proxy(directory, 0) as server:
        number = server.fileno()
        rank = started("-c", RANK, str(seconds), pass_fds=(number,), **{PRELOADED_SOCKET: str(number)})
    proxy = started("-m", "render.launch.preloaded_rank", str(directory), RANK="7")
    wait_until((directory / "started").exists)
    return rank, proxy


def test_the_rank_gets_the_environment_of_its_proxy_and_ends_it(
    tmp_path: Path, started: Callable[..., Process]
) -> None:
    _, proxy = pair(started, tmp_path, 0.1)
    assert proxy.wait(30) == 5
    assert (tmp_path / "started").read_text() == "7"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_rank_ends_with_its_proxy(
    tmp_path: Path, started: Callable[..., Process], number: signal.Signals
) -> None:
    rank, proxy = pair(started, tmp_path, 60)
    proxy.send_signal(number)
    assert rank.wait(30) == 1


def test_a_killed_rank_looks_killed_to_torchrun(tmp_path: Path, started: Callable[..., Process]) -> None:
    rank, proxy = pair(started, tmp_path, 60)
    rank.kill()
    assert proxy.wait(30) == -signal.SIGKILL


def test_a_rank_that_died_before_torchrun_started_it_is_not_replaced(
    tmp_path: Path, started: Callable[..., Process]
) -> None:
    listen_for_proxy(tmp_path, 0).close()
    assert started("-m", "render.launch.preloaded_rank", str(tmp_path)).wait(30) == -signal.SIGKILL


def test_where_torchrun_starts_its_ranks_again_the_proxy_becomes_one(
    tmp_path: Path, started: Callable[..., Process]
) -> None:
    _, first = pair(started, tmp_path, 0.1)
    assert first.wait(30) == 5
    second = started("-m", "render.launch.preloaded_rank", str(tmp_path))
    line = Path(f"/proc/{second.pid}/cmdline")
    wait_until(lambda: b"render.launch.rank" in line.read_bytes())
