"""No page of the board violates a rule of axe-core (WCAG AA, best practices): light, dark, on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest

from tests.jobs.board.conftest import SLOW_MS, see
from tests.support.board import RunningBoard, running_board
from tests.support.finished_batch import make_batch, settings_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True},
}


@dataclass(frozen=True)
class Shown:
    board: RunningBoard
    batch: str
    jobs: tuple[str, ...]

    def pages(self) -> dict[str, str]:
        done, other, waiting = self.jobs
        return {
            "queues": "/",
            "jobs": "/jobs",
            "no jobs": "/jobs?q=nothing",
            "done job": f"/jobs/{done}",
            "queued job": f"/jobs/{waiting}",
            "viewer": f"/jobs/{done}/view",
            "compare": f"/compare?left={done}&right={other}",
            "batches": "/batches",
            "batch": f"/batches/{self.batch}",
            "review": f"/batches/{self.batch}#review",
            "nodes": "/nodes",
            "queue": "/queues/default",
            "webhooks": "/webhooks",
            "budgets": "/budgets",
            "delete a batch": f"/batches/{self.batch}/delete",
            "submit": "/submit",
            "API": "/api",
            "log in": "/login",
            "no such page": "/nothing",
        }


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Three images of a batch: a rejected one, one that was kept and starred, and one that waits."""
    folder = tmp_path_factory.mktemp("accessible")
    batch = make_batch(folder, ("A-1", "A-1-s2", "B"), done=2)
    with running_board(folder, "serve", "--port", "0", **settings_of(folder)) as board:
        for image, verdict in (("A-1", "reject"), ("A-1-s2", "keep")):
            answer = {"images": [image], "verdict": verdict, "starred": verdict == "keep", "reason": "color"}
            assert board.ask(f"/api/v1/batches/{batch}/review", "POST", answer).status == 200
        images = board.ask(f"/api/v1/batches/{batch}/review").json["images"]
        yield Shown(board, batch, tuple(image["job"] for image in images))


def violations(page: Page) -> list[str]:
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{each['id']}: {node['html'][:160]}" for each in found for node in each["nodes"]]


def overlay_violations(page: Page) -> list[str]:
    """Those of the keys that each page shows on ?, which has to take the focus and to give it back."""
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    opened = page.evaluate("document.querySelector('dialog.keys').open && document.activeElement.textContent")
    wrong = [] if opened == "Close" else [f"? opens no keys ({opened})"]
    wrong += [f"keys: {each}" for each in violations(page)]
    page.keyboard.press("Escape")
    open_ = page.evaluate("document.querySelector('dialog.keys').open")
    return wrong + (["Escape does not close the keys"] if open_ else [])


@pytest.mark.slow
@pytest.mark.parametrize("screen", list(SCREENS))
def test_no_page_violates_a_rule(browser: Browser, shown: Shown, screen: str) -> None:
    context = browser.new_context(base_url=shown.board.address, reduced_motion="reduce", **SCREENS[screen])
    page = context.new_page()
    page.set_default_timeout(SLOW_MS)
    found: list[str] = []
    for name, path in shown.pages().items():
        page.goto("about:blank")
        page.goto(path, wait_until="load")
        if name == "review":
            see(page, "window.chorale?.viewers[0]?.world.getItemAt(0)?.getFullyLoaded()")
        wrong = violations(page)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        wrong += [f"scrolls sideways by {wide} px"] if wide > 0 else []
        wrong += overlay_violations(page)
        found += [f"{name}: {each}" for each in wrong]
    context.close()
    assert not found, "\n".join(found)
