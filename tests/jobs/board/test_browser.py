"""The board in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.jobs.board.conftest import OPERATOR, SLOW_MS, VIEWER, SmallFarm, see
from tests.support.board import RunningBoard

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def submit(page: Page, prompt: str, size: str, steps: int) -> None:
    page.goto("/submit")
    page.get_by_label("Prompt").first.fill(prompt)
    page.get_by_label("Size").first.fill(size)
    page.get_by_label("Steps").first.fill(str(steps))
    page.get_by_role("button", name="Submit", exact=True).click()
    page.wait_for_url("**/jobs/*")


def test_an_image_is_submitted_watched_and_zoomed_to_its_last_level(page: Page) -> None:
    submit(page, "a blue mug", "384x384", 10)
    job = page.url.rpartition("/")[2]
    # Without reloading: the stream brings progress, then the preview of a stage, then the image.
    see(page, "document.querySelector('progress')?.value > 0")
    first = page.locator("progress").first.get_attribute("value")
    bar = "document.querySelector('progress')?.value ?? 1"
    see(page, f"({bar}) > {first or 0}")
    page.get_by_role("link", name="Open viewer").click()
    see(page, "window.chorale?.viewers[0].world.getItemAt(0)?.getFullyLoaded()")
    page.get_by_role("button", name="1:1").click()
    for _ in range(3):
        page.get_by_role("button", name="Zoom in").click()
    # 384 px: level 9 is the full resolution.
    see(page, "performance.getEntriesByType('resource').some(e => e.name.includes('image_files/9/'))")
    see(page, "window.chorale.viewers[0].world.getItemAt(0).getFullyLoaded()")
    assert job in page.url


def test_two_images_move_under_one_pan_and_zoom(page: Page, small_farm: SmallFarm) -> None:
    left, right = small_farm.done
    page.goto(f"/compare?left={left}&right={right}")
    see(page, "window.chorale?.viewers.every(v => v.world.getItemAt(0)?.getFullyLoaded())")
    before = page.evaluate("chorale.viewers[1].viewport.getZoom()")
    page.get_by_role("button", name="Zoom in").click()
    page.evaluate("chorale.viewers[0].viewport.panBy(new OpenSeadragon.Point(0.05, 0.02))")
    see(page, "chorale.viewers[0].viewport.getZoom(true) === chorale.viewers[0].viewport.getZoom()")
    views = page.evaluate("chorale.viewers.map(v => [v.viewport.getZoom(), v.viewport.getCenter().x])")
    assert views[0] == pytest.approx(views[1], rel=1e-6) and views[1][0] > before


def test_a_rendering_job_is_cancelled_and_others_see_it(page: Page, small_farm: SmallFarm) -> None:
    submit(page, "a bowl to cancel", "1024x1024", 60)
    job = page.url.rpartition("/")[2]
    see(page, "document.querySelector('progress')?.value > 0")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    page.locator(".status-line .state.cancelled").wait_for()
    assert small_farm.state_of(job) == "cancelled"
    page.goto("/jobs?state=cancelled")
    page.locator(f"#job-{job}").wait_for()


def test_a_prompt_is_text_wherever_it_is_shown(page: Page, small_farm: SmallFarm) -> None:
    prompt = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> \'"&'
    image = {"prompt": prompt, "size": "128x128", "queue": "xss", "not_before": "2099-01-01T00:00+00:00"}
    made = small_farm.board.ask("/api/v1/jobs", "POST", image | {"owner": "a b"}).json
    for path in ("/jobs?queue=xss", f"/jobs/{made['job']}", "/batches", f"/submit?job={made['job']}"):
        page.goto(path)
        shown = page.locator("textarea").first.input_value() if "submit" in path else page.inner_text("main")
        assert prompt[:60] in shown
        # The stream sends the same block again after a moment; the prompt must be text there too.
        if "submit" not in path:
            page.locator(".pulse.on").wait_for()
        assert page.evaluate("window.hit") is None
    page.goto(f"/jobs?q={'<script>window.hit=1</script>'}&owner=<b>")
    assert page.evaluate("window.hit") is None
    small_farm.board.ask(f"/api/v1/jobs/{made['job']}/cancel", "POST")


def test_a_token_is_refused_and_another_lets_in(browser: Browser, locked: RunningBoard) -> None:
    context = browser.new_context(base_url=locked.address)
    try:
        page = context.new_page()
        page.set_default_timeout(SLOW_MS)
        page.goto("/jobs?state=done")
        page.get_by_label("Token").fill("no-such-token-at-all")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("alert").wait_for()
        assert "Invalid token" in page.inner_text("main")
        assert page.get_by_role("navigation").count() == 0, "without a token nothing is shown"
        for token, may_submit in ((VIEWER, 0), (OPERATOR, 1)):
            page.goto("/login?next=/jobs")
            page.get_by_label("Token").fill(token)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_url("**/jobs")
            assert page.get_by_role("link", name="Submit", exact=True).count() == may_submit
            assert token not in page.content()
    finally:
        context.close()
