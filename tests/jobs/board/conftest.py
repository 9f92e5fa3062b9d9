"""Boards for these tests: of a farm with a node and two finished images, without nodes, and with tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.board import RunningBoard, running_board
from tests.support.cli import wait_until

OPERATOR, VIEWER = "correct-horse-battery-operator", "correct-horse-battery-viewer"
IMAGE = {"prompt": "a red vase", "size": "320x192", "steps": 2, "tile_size": 64, "ranks": 1}


@dataclass(frozen=True)
class SmallFarm:
    board: RunningBoard
    done: tuple[str, str]
    """Two jobs whose images are finished, of the same size."""

    def state_of(self, job: str) -> str:
        state: str = self.board.ask(f"/api/v1/jobs/{job}").json["state"]
        return state


@pytest.fixture(scope="session")
def small_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallFarm]:
    folder = tmp_path_factory.mktemp("small_farm")
    with running_board(folder, "up", "--slots", "1", "--port", "0", CHORALE_NODE="node-1") as board:
        one, two = (board.ask("/api/v1/jobs", "POST", IMAGE | {"seed": seed}).json["job"] for seed in (1, 2))
        made = SmallFarm(board, (one, two))
        wait_until(lambda: {made.state_of(job) for job in (one, two)} == {"done"}, 180)
        yield made


@pytest.fixture(scope="session")
def quiet_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBoard]:
    """A board of a farm without nodes, whose jobs stay queued."""
    with running_board(tmp_path_factory.mktemp("quiet"), "serve", "--port", "0") as board:
        yield board


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBoard]:
    """A board with tokens."""
    folder = tmp_path_factory.mktemp("locked")
    tokens = folder / "tokens"
    tokens.write_text(f"# who may\noperator={OPERATOR}\nviewer: {VIEWER}\n")
    arguments = ("serve", "--host", "0.0.0.0", "--port", "0")
    with running_board(folder, *arguments, CHORALE_TOKENS_FILE=str(tokens)) as board:
        yield RunningBoard(board.address.replace("0.0.0.0", "127.0.0.1"), board.log)
