"""One small farm with a board for all of these tests: a node that renders, and two finished images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.board import RunningBoard, running_board
from tests.support.cli import wait_until

OPERATOR, VIEWER = "correct-horse-battery-operator", "correct-horse-battery-viewer"
IMAGE = {"prompt": "a red vase", "size": "320x192", "steps": 2, "tile_size": 64, "ranks": 1}


@dataclass(frozen=True)
class Atelier:
    board: RunningBoard
    done: tuple[str, str]
    """Two jobs whose images are finished, of the same size."""

    def state_of(self, job: str) -> str:
        state: str = self.board.ask(f"/api/v1/jobs/{job}").json["state"]
        return state


@pytest.fixture(scope="session")
def atelier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atelier]:
    folder = tmp_path_factory.mktemp("atelier")
    with running_board(folder, "up", "--slots", "1", "--port", "0", CHORALE_NODE="easel") as board:
        one, two = (board.ask("/api/v1/jobs", "POST", IMAGE | {"seed": seed}).json["job"] for seed in (1, 2))
        made = Atelier(board, (one, two))
        wait_until(lambda: {made.state_of(job) for job in (one, two)} == {"done"}, 180)
        yield made


@pytest.fixture(scope="session")
def quiet_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBoard]:
    """A board of a farm without nodes, where jobs wait for ever."""
    with running_board(tmp_path_factory.mktemp("quiet"), "serve", "--port", "0") as board:
        yield board


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBoard]:
    """A board that wants tokens."""
    folder = tmp_path_factory.mktemp("locked")
    tokens = folder / "tokens"
    tokens.write_text(f"# who may\noperator={OPERATOR}\nviewer: {VIEWER}\n")
    words = ("serve", "--host", "0.0.0.0", "--port", "0")
    with running_board(folder, *words, CHORALE_TOKENS_FILE=str(tokens)) as board:
        yield RunningBoard(board.address.replace("0.0.0.0", "127.0.0.1"), board.log)
