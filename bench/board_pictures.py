"""Pictures of the board of a small farm that renders: the README's, and every page for whoever changes one.

    python -m bench.board_pictures                       # examples/board.webp
    python -m bench.board_pictures --pages /tmp/pages    # all pages: light, dark, and on a phone

Everything on them is real but for the one failed job, which is made up. Needs Chromium.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from PIL import Image
from sqlalchemy import update

from infra.database import Database
from jobs.client import Farm
from jobs.db.state_machine import change_state
from jobs.db.tables import jobs
from jobs.errors import Refused
from tests.support.board import RunningBoard, running_board
from tests.support.cli import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

README_PICTURE = Path(__file__).parents[1] / "examples" / "board.webp"
_CATALOG = README_PICTURE.with_name("catalog.csv")
_TEMPLATE = "a studio photo of a {color} {product} {place}"
_SCREENS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True},
    "phone-dark": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "has_touch": True},
}
_WHOLE_SCREEN = ("viewer", "review", "compare", "keys")
"""Pages that do not scroll."""
_OPERATOR, _VIEWER = "correct-horse-battery-operator", "correct-horse-battery-viewer"


@dataclass(frozen=True)
class Scene:
    """What is on the farm."""

    batch: str
    done: tuple[str, ...]
    failed: str
    impossible: str
    running: str

    def pages(self) -> dict[str, str]:
        """Paths by the name of the page."""
        one, other = self.done[:2]
        return {
            "queues": "/",
            "jobs": "/jobs",
            "jobs-none": "/jobs?q=nothing",
            "job-running": f"/jobs/{self.running}",
            "job-done": f"/jobs/{one}",
            "job-failed": f"/jobs/{self.failed}",
            "job-impossible": f"/jobs/{self.impossible}",
            "viewer": f"/jobs/{one}/view",
            "compare": f"/compare?left={one}&right={other}",
            "batches": "/batches",
            "batch": f"/batches/{self.batch}",
            "batch-rejected": f"/batches/{self.batch}?verdict=rejected",
            "review": f"/batches/{self.batch}#review",
            "nodes": "/nodes",
            "submit": "/submit",
            "submit-batch": "/submit?part=batch#batch",
            "variation": f"/submit?job={one}",
            "webhooks": "/webhooks",
            "budgets": "/budgets",
            "delete": f"/batches/{self.batch}/delete",
            "api": "/api",
            "missing": "/nothing",
        }


def make_scene(farm: Farm, database: Database, images: int) -> Scene:
    """A reviewed catalog, jobs in all states, and an image that two ranks have half rendered."""
    with _CATALOG.open("rb") as file:
        head = b"".join(next(file) for _ in range(images + 1))
    with tempfile.TemporaryDirectory() as name:
        feed = Path(name) / "autumn catalog.csv"
        feed.write_bytes(head)
        wanted = {"template": _TEMPLATE, "queue": "night", "owner": "anna", "ranks": "1"}
        wanted["defaults"] = '{"size": "512x512"}'
        batch = farm.submit_batch(feed, **wanted)["batch"]
    farm.wait(batch=batch, timeout_s=3600)
    rows = farm.rows(batch)
    ids = [row["custom_id"] for row in rows]
    farm.review(batch, ids[:5], verdict="keep", reviewer="anna")
    farm.review(batch, ids[1:2], starred=True, reviewer="anna")
    farm.review(batch, ids[5:7], verdict="reject", reason="wrong color", reviewer="anna")
    farm.review(batch, ids[4:5], verdict="reject", reason="cut off", reviewer="ben")
    farm.ask_for(batch, "shopify")
    one = {"queue": "stills", "owner": "ben", "size": "512x512", "ranks": 1}
    failed = farm.submit("a tall glass vase on marble", **one, seed=9)["job"]
    farm.wait(failed, timeout_s=600)
    fail(database, failed)
    one["not_before"] = "2099-01-01T22:00+01:00"
    long = "a wide still life of a bowl, a jug and three cups on linen, soft light from the left, " * 2
    for number, prompt in enumerate(("a white bowl on slate", long.strip(), "an amber jug on oak")):
        job = farm.submit(prompt, **one, seed=number)["job"]
        if number == 2:
            farm.change("cancel", job)
    impossible = farm.submit("a panorama of a shelf", queue="stills", size="4096x1024", ranks=16)["job"]
    running = farm.submit(
        "a teal ceramic vase on a wooden table, soft window light",
        queue="stills",
        owner="ben",
        size="1536x1024",
        seed=21,
        ranks=2,
        steps=40,
    )["job"]
    wait_until(lambda: farm.job(running)["progress"] > 0.55, 3600)
    return Scene(
        batch=batch,
        done=tuple(row["id"] for row in rows),
        failed=failed,
        impossible=impossible,
        running=running,
    )


def fail(database: Database, job: str) -> None:
    """Let a job look as one that nothing could render: its image is not asked for."""
    reason = "gave up after 4 attempts: the ranks were out of memory (2.1 GiB wanted, 1.4 GiB free)"
    with database.write() as connection:
        values = {"state": "rendering", "root": None, "folder": None, "attempts": 4}
        connection.execute(update(jobs).where(jobs.c.id == job).values(**values))
        change_state(connection, job, "rendering", "failed", reason)


@contextmanager
def opened_browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium does not put root into a sandbox; what it opens here is ours.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()


def take_pages(
    browser: Browser, address: str, pages: dict[str, str], folder: Path, screens: tuple[str, ...]
) -> None:
    """Each page on each screen, as `SCREEN-PAGE.png`."""
    for screen in screens:
        context = browser.new_context(base_url=address, reduced_motion="reduce", **_SCREENS[screen])
        for name, path in pages.items():
            page = context.new_page()
            page.goto(path, wait_until="load")
            settle(page, name)
            page.screenshot(path=folder / f"{screen}-{name}.png", full_page=name not in _WHOLE_SCREEN)
            page.close()
        context.close()


def settle(page: Page, name: str) -> None:
    """Wait until the pictures of a page are there."""
    shown = "[...document.images].every((image) => image.complete || image.loading === 'lazy')"
    wait_until(lambda: page.evaluate(shown), 60)
    time.sleep(2.0 if name in ("viewer", "review", "compare") else 0.4)


def take_readme_picture(browser: Browser, address: str, job: str) -> None:
    """The job that two ranks are rendering, on a screen of 1440x900."""
    context = browser.new_context(
        base_url=address, color_scheme="light", viewport={"width": 1440, "height": 900}
    )
    page = context.new_page()
    page.goto(f"/jobs/{job}", wait_until="load")
    settle(page, "job")
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(README_PICTURE, "WEBP", quality=82, method=6)
    context.close()


def take_locked_pages(browser: Browser, home: Path, folder: Path, screens: tuple[str, ...]) -> None:
    """What is only seen with tokens: the log-in form, and what a viewer may not open."""
    tokens = home / "tokens"
    tokens.write_text(f"operator={_OPERATOR}\nviewer={_VIEWER}\n")
    with running_board(home, "serve", "--port", "0", CHORALE_TOKENS_FILE=str(tokens)) as board:
        take_pages(browser, board.address, {"login": "/login"}, folder, screens)
        for screen in screens:
            context = browser.new_context(base_url=board.address, **_SCREENS[screen])
            page = context.new_page()
            for name, token in (("login-refused", "wrong"), ("viewer-queues", _VIEWER)):
                page.goto("/login")
                page.fill("input[name=token]", token)
                page.keyboard.press("Enter")
                page.wait_for_load_state("load")
                page.screenshot(path=folder / f"{screen}-{name}.png", full_page=True)
            page.goto("/submit")
            page.screenshot(path=folder / f"{screen}-forbidden.png", full_page=True)
            context.close()


@click.command()
@click.option("--pages", "folder", type=click.Path(path_type=Path), help="Take all pages, into this folder.")
@click.option("--screen", "screens", multiple=True, type=click.Choice(list(_SCREENS)), help="[all]")
@click.option("--images", type=int, default=12, show_default=True, help="Images of the catalog.")
@click.option("--home", type=click.Path(path_type=Path), help="Where the farm's files are kept. [nowhere]")
def main(folder: Path | None, screens: tuple[str, ...], images: int, home: Path | None) -> None:
    """Take the pictures."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as name:
        home = home or Path(name)
        home.mkdir(parents=True, exist_ok=True)
        words = ("up", "--slots", "2", "--port", "0")
        with running_board(home, *words, CHORALE_NODE="studio-1") as board, opened_browser() as browser:
            take(board, browser, home, folder, screens or tuple(_SCREENS), images)
        if folder is not None:
            with opened_browser() as browser:
                take_locked_pages(browser, home, folder, screens or tuple(_SCREENS))


def take(
    board: RunningBoard,
    browser: Browser,
    home: Path,
    folder: Path | None,
    screens: tuple[str, ...],
    images: int,
) -> None:
    """Make the scene, and take its pictures while it lasts."""
    database = Database(f"sqlite:///{home / 'chorale' / 'farm.db'}")
    with Farm(board.address) as farm:
        window = {"time_window": "22:00-07:00", "priority": 60}
        assert board.ask("/api/v1/queues/stills", "PUT", {"priority": 70}).status == 200
        scene = make_scene(farm, database, images)
        take_readme_picture(browser, board.address, scene.running)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            assert board.ask("/api/v1/queues/night", "PUT", window).status == 200
            hook = {"url": "https://hooks.slack.com/services/T0/B0/x", "queue": "night"}
            assert board.ask("/api/v1/webhooks", "POST", hook).status == 201
            # The running one first: it ends.
            pages = scene.pages()
            first = {name: pages.pop(name) for name in ("job-running", "queues", "nodes")}
            take_pages(browser, board.address, first, folder, screens)
            take_pages(browser, board.address, pages, folder, screens)
        with suppress(Refused):  # it may be done by now
            farm.change("cancel", scene.running)
    database.close()


if __name__ == "__main__":
    main()
