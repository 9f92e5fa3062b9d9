"""Ranks that start before torchrun asks for them; the rank here imports nothing and does as it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from render.launch.parent_death import PARENT
from render.launch.preloaded_rank import DOOR, listening
from tests.support.cli import wait_until

RANK = """
import os, sys, time
from render.launch.preloaded_rank import Early
early = Early.begin(lambda: None)
open("said", "a").write(os.environ["RANK"])
time.sleep(float(sys.argv[1]))
early.end(5)
os._exit(5)
"""
Process = subprocess.Popen[bytes]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts processes on one desk."""
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


def pair(started: Callable[..., Process], desk: Path, seconds: float) -> tuple[Process, Process]:
    """(rank, stand-in), once the rank has begun."""
    with listening(desk, 0) as door:
        number = door.fileno()
        rank = started("-c", RANK, str(seconds), pass_fds=(number,), **{DOOR: str(number)})
    stand_in = started("-m", "render.launch.preloaded_rank", str(desk), RANK="7")
    wait_until((desk / "said").exists)
    return rank, stand_in


def test_the_rank_gets_the_stand_ins_environment_and_ends_it(
    tmp_path: Path, started: Callable[..., Process]
) -> None:
    _, stand_in = pair(started, tmp_path, 0.1)
    assert stand_in.wait(30) == 5
    assert (tmp_path / "said").read_text() == "7"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_rank_ends_with_its_stand_in(
    tmp_path: Path, started: Callable[..., Process], number: signal.Signals
) -> None:
    rank, stand_in = pair(started, tmp_path, 60)
    stand_in.send_signal(number)
    assert rank.wait(30) == 1


def test_a_killed_rank_looks_killed_to_torchrun(tmp_path: Path, started: Callable[..., Process]) -> None:
    rank, stand_in = pair(started, tmp_path, 60)
    rank.kill()
    assert stand_in.wait(30) == -signal.SIGKILL


def test_a_rank_that_died_before_it_was_asked_for_is_not_replaced(
    tmp_path: Path, started: Callable[..., Process]
) -> None:
    listening(tmp_path, 0).close()
    assert started("-m", "render.launch.preloaded_rank", str(tmp_path)).wait(30) == -signal.SIGKILL


def test_where_torchrun_starts_its_ranks_again_the_stand_in_becomes_one(
    tmp_path: Path, started: Callable[..., Process]
) -> None:
    _, first = pair(started, tmp_path, 0.1)
    assert first.wait(30) == 5
    second = started("-m", "render.launch.preloaded_rank", str(tmp_path))
    line = Path(f"/proc/{second.pid}/cmdline")
    wait_until(lambda: b"render.launch.rank" in line.read_bytes())
