"""Boards for these tests: of a farm with a node and two finished images, without nodes, and with tokens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.board import RunningBoard, running_board
from tests.support.cli import wait_until
from tests.support.services import require

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
SLOW_MS = 90_000
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require(CHROMIUM, "Chromium", "chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium does not put root into a sandbox; what it opens here is ours.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, small_farm: SmallFarm) -> Iterator[Page]:
    """A page; errors on its console, of scripts or of the content security policy, fail the test."""
    context = browser.new_context(base_url=small_farm.board.address)
    made, errors = context.new_page(), list[str]()
    made.set_default_timeout(SLOW_MS)
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield made
    context.close()
    assert errors == []


def see(page: Page, condition: str) -> None:
    """Wait until an expression is true. Playwright's own waiting uses eval, which the policy forbids."""
    wait_until(lambda: page.evaluate(condition), SLOW_MS / 1000)
