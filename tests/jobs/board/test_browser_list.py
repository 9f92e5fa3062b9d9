"""The list of jobs in a real browser: keys, and columns and an order that the browser remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.jobs.board.conftest import SLOW_MS, see
from tests.support.board import RunningBoard

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OPEN = "document.querySelector('dialog.keys').open"


@pytest.mark.slow
def test_columns_and_the_order_are_remembered_and_keys_lead_everywhere(
    browser: Browser, quiet_board: RunningBoard
) -> None:
    image = {"size": "64x64", "queue": "listed"}
    for prompt in ("a vase", "a mug"):
        assert quiet_board.ask("/api/v1/jobs", "POST", image | {"prompt": prompt}).status == 201
    page = browser.new_context(base_url=quiet_board.address).new_page()
    page.set_default_timeout(SLOW_MS)
    page.goto("/jobs")
    owners = "getComputedStyle(document.querySelector('.c-owner')).display !== 'none'"
    see(page, owners)
    page.click("#columns summary")
    page.uncheck("[data-column=owner]")
    see(page, f"!({owners})")
    page.select_option("[data-remember]", "created")
    page.wait_for_url("**/jobs?*sort=created*")
    page.goto("/nodes")
    page.click("nav a[href='/jobs']")
    page.wait_for_url("**/jobs?sort=created")
    see(page, f"!({owners}) && !document.querySelector('[data-column=owner]').checked")

    page.keyboard.press("j")
    first = "document.activeElement === document.querySelectorAll('.list a.row')[0]"
    see(page, first)
    page.keyboard.press("x")
    see(page, "document.querySelectorAll('.pick:checked').length === 1")
    page.keyboard.press("j")
    see(page, "document.activeElement === document.querySelectorAll('.list a.row')[1]")
    page.keyboard.press("k")
    see(page, first)
    page.keyboard.press("?")
    see(page, f"{OPEN} && document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    see(page, f"!{OPEN} && {first}")
    for key, path in (("n", "/nodes"), ("b", "/batches"), ("q", "/")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(f"**{path}")

    # Who dictates would press keys by speaking: single letters can be switched off.
    page.keyboard.press("?")
    see(page, OPEN)
    page.uncheck("[data-letter-keys]")
    page.keyboard.press("Escape")
    see(page, f"!{OPEN}")
    page.reload()
    page.keyboard.press("?")
    page.click("[data-open-keys]")
    see(page, f"{OPEN} && !document.querySelector('[data-letter-keys]').checked")
    page.context.close()
