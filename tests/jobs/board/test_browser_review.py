"""Review in a real browser: verdicts by keys, the viewer over the sheet, compare, re-roll."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from bench.contact_sheet import make_batch as fabricate
from infra.database import Database
from jobs.board import pages
from jobs.db.tables import jobs
from render.spec import Spec
from tests.jobs.board.conftest import SLOW_MS, see
from tests.support.board import RunningBoard, running_board
from tests.support.finished_batch import finish, make_batch, settings_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IDS = ("A-1", "A-1-s2", "B", "C")


@dataclass(frozen=True)
class Farm:
    """A board of a farm without nodes."""

    board: RunningBoard
    folder: Path
    batch: str

    def images(self) -> dict[str, Any]:
        found = self.board.ask(f"/api/v1/batches/{self.batch}/review").json["images"]
        return {image["custom_id"]: image for image in found}

    def verdicts(self) -> list[str]:
        return [image["verdict"] for image in self.images().values()]

    def render(self, job: str) -> None:
        """What a node would do."""
        database = Database(settings_of(self.folder)["CHORALE_DATABASE_URL"])
        with database.read() as connection:
            spec = connection.execute(select(jobs.c.spec).where(jobs.c.id == job)).scalar_one()
        finish(database, self.folder / "images", Spec.from_mapping(spec))
        database.close()


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Four finished images."""
    folder = tmp_path_factory.mktemp("review")
    batch = make_batch(folder, IDS, done=4)
    with running_board(folder, "serve", "--port", "0", **settings_of(folder)) as board:
        yield Farm(board, folder, batch)


@pytest.fixture
def page(browser: Browser, farm: Farm) -> Iterator[Page]:
    """The batch's page; errors of scripts and of the content security policy fail the test."""
    context = browser.new_context(base_url=farm.board.address)
    made, errors = context.new_page(), list[str]()
    made.set_default_timeout(SLOW_MS)
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    made.goto(f"/batches/{farm.batch}")
    yield made
    context.close()
    assert [text for text in errors if "503" not in text] == []


def test_a_batch_is_reviewed_by_keys_and_rejected_images_are_rolled_again(page: Page, farm: Farm) -> None:
    page.locator("#row-1 a").focus()
    page.keyboard.press("k")
    see(page, "document.querySelector('#row-1 .mark-of')?.textContent === 'kept'")
    # The focus has gone on to the second image, which opens over the sheet.
    page.keyboard.press("Enter")
    see(page, "window.chorale?.viewers[0]?.world.getItemAt(0)?.getFullyLoaded()")
    assert page.inner_text("#review-title") == IDS[1]
    before = page.evaluate("chorale.viewers[0].viewport.getZoom()")
    page.keyboard.press("+")
    see(page, f"chorale.viewers[0].viewport.getZoom() > {before}")
    page.keyboard.press("c")
    see(page, "chorale.viewers.length === 2 && chorale.viewers.every(v => v.world.getItemAt(0))")
    # The other seed of the same row.
    compared = page.evaluate("[...document.querySelectorAll('dialog .viewer')].map(v => v.ariaLabel)")
    assert [text.partition(":")[0] for text in compared] == [IDS[1], IDS[0]]
    page.keyboard.press("c")
    page.get_by_label("Your name").fill("anna")
    page.get_by_label("Reason").fill("wrong color")
    page.get_by_role("button", name="Reject").click()
    # Decided, so the next image is shown.
    see(page, f"document.querySelector('#review-title').textContent === '{IDS[2]}'")
    page.keyboard.press("s")
    page.get_by_label("Note").fill("for the front page")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    remarks = "document.querySelector('[data-review-remarks]').textContent"
    see(page, f"{remarks}.includes('anna: reject, wrong color')")
    see(page, "document.querySelector('[data-review-status]').textContent === 'Saved'")
    page.keyboard.press("?")
    assert page.get_by_role("heading", name="Keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    see(page, "document.activeElement.closest('li')?.id === 'row-2'")
    found = farm.images()
    assert farm.verdicts() == ["kept", "rejected", "unreviewed", "unreviewed"]
    assert found[IDS[2]]["stars"] == 1 and found[IDS[2]]["votes"][0]["note"] == "for the front page"

    page.get_by_role("link", name="rejected 1").click()
    page.wait_for_url("**verdict=rejected")
    assert page.locator(".sheet li").count() == 1
    page.get_by_text("Re-roll 1 rejected").click()
    page.get_by_role("button", name="Render again").click()
    page.wait_for_url(f"**/batches/{farm.batch}?notice=*")
    assert "1 image will be rendered again" in page.inner_text(".notice")
    again = farm.images()[IDS[1]]
    assert again["job"] != found[IDS[1]]["job"] and again["votes"] == []
    # Without reloading, the new image comes into its place on the sheet.
    farm.render(again["job"])
    see(page, f"document.querySelector('#row-2 img')?.src.includes('{again['job']}')")
    see(page, "document.querySelector('#row-2 img').naturalWidth > 0")


def test_votes_are_sent_again_when_the_board_was_away(page: Page, farm: Farm) -> None:
    refused: list[str] = []

    def refuse_twice(route: Any) -> None:
        if len(refused) < 2:
            refused.append(route.request.post_data)
            route.fulfill(status=503, body="{}")
        else:
            route.continue_()

    page.route("**/review", refuse_twice)
    page.locator("#row-4 a").focus()
    page.keyboard.press("k")
    page.locator("#row-3 a").focus()
    page.keyboard.press("r")
    see(page, "document.querySelector('#row-4 .mark-of')?.textContent === 'kept'")
    see(page, "document.querySelector('#row-3 .mark-of')?.textContent === 'rejected'")
    assert len(refused) == 2
    assert farm.verdicts()[2:] == ["rejected", "kept"]


def test_a_reviewer_sees_what_another_one_says(page: Page, farm: Farm) -> None:
    page.locator(".pulse.on").wait_for()
    for who, verdict in (("ben", "reject"), ("carl", "keep")):
        vote = {"images": [IDS[0]], "verdict": verdict, "reviewer": who}
        assert farm.board.ask(f"/api/v1/batches/{farm.batch}/review", "POST", vote).status == 200
    see(page, "document.querySelector('#row-1 .mark-of')?.textContent === 'disputed'")


def test_a_large_contact_sheet_goes_on_as_it_is_scrolled(browser: Browser, tmp_path: Path) -> None:
    """And so does the viewer over it; a verdict on an image of a later page is kept."""
    count = 2 * pages.IMAGES + 5
    settings = settings_of(tmp_path)
    batch = fabricate(settings["CHORALE_DATABASE_URL"], tmp_path / "images", count)
    with running_board(tmp_path, "serve", "--port", "0", **settings) as board:
        context = browser.new_context(base_url=board.address)
        page = context.new_page()
        page.set_default_timeout(SLOW_MS)
        page.goto(f"/batches/{batch}")
        items = "document.querySelectorAll('.sheet li').length"
        while page.evaluate(items) < count:
            before = page.evaluate(items)
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            see(page, f"{items} > {before}")
        names = "[...document.querySelectorAll('.sheet li')].map(item => item.dataset.image)"
        assert page.evaluate(names) == [f"SKU-{number:06}" for number in range(2, count + 2)]
        assert page.evaluate("document.querySelectorAll('.pager a[rel=next]').length") <= 1
        # An image without a vote, on the last page.
        last = count if count % 2 else count + 1
        page.locator(f"#row-{last} a").focus()
        page.keyboard.press("k")
        see(page, f"document.querySelector('#row-{last} .mark-of')?.textContent === 'kept'")
        context.close()
        images = board.ask(f"/api/v1/batches/{batch}/review?limit=1000").json["images"]
    assert {image["row"]: image["verdict"] for image in images}[last] == "kept"
