"""A producer's way from a feed to files, with the commands of docs/CATALOG.md and the board in a browser.

The commands and the board are real; the night is not: images are rendered in this process by the toy model.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from sqlalchemy import select

from infra.database import Database
from jobs.cli.main import main
from jobs.db.tables import jobs
from render.spec import Spec
from tests.jobs.board.conftest import SLOW_MS, see
from tests.support.board import RunningBoard, running_board
from tests.support.finished_batch import finish, settings_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DOCUMENT = (Path(__file__).parents[3] / "docs" / "CATALOG.md").read_text(encoding="utf-8")
BATCH = "8c1f00aa3b52"
MOST_ACTIONS = 25
TITLES = ("Vase groß", "Schüssel", "Krug", "Flasche", "Becher")


def commands() -> tuple[list[list[str]], list[list[str]]]:
    """Those of the section before the review, and those after it."""
    section = DOCUMENT.partition("## The whole way")[2].partition("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", section, re.S)
    before, after = ([shlex.split(line)[1:] for line in block.splitlines()] for block in blocks)
    return before, after


def write_feed(file: Path, products: int) -> None:
    """As a German spreadsheet writes it: semicolons, a byte order mark, columns that nobody needs."""
    lines = ["SKU;Title;Colour;Preis;Lager;Notiz"]
    for number in range(products):
        title = TITLES[number % len(TITLES)]
        lines.append(f"A-{number:03};{title};rot {number};19,90;{number};größer als A-1")
    file.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningBoard]:
    """A board of an empty farm, in a folder where the producer works."""
    for name, value in settings_of(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    with running_board(tmp_path, "serve", "--port", "0", **settings_of(tmp_path)) as board:
        yield board


def run(capsys: pytest.CaptureFixture[str], words: list[str], batch: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([word.replace(BATCH, batch) for word in words])
    answer = capsys.readouterr()
    assert not ended.value.code, answer.err
    return answer.out


def night(folder: Path) -> int:
    """Render what is queued. Returns how many images those were."""
    database = Database(settings_of(folder)["CHORALE_DATABASE_URL"])
    with database.read() as connection:
        queued = connection.execute(select(jobs.c.spec).where(jobs.c.state == "queued")).scalars().all()
    for spec in queued:
        finish(database, folder / "images", Spec.from_mapping(spec))
    database.close()
    return len(queued)


@pytest.mark.parametrize(
    ("products", "rejected"), [(2, 1), pytest.param(30, 5, marks=pytest.mark.slow)], ids=["few", "thirty"]
)
def test_from_a_feed_to_files_of_two_channels(
    farm: RunningBoard,
    browser: Browser,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    products: int,
    rejected: int,
) -> None:
    write_feed(tmp_path / "feed.csv", products)
    before, after = commands()
    actions = len(before) + len(after)
    assert before[0][0] == "up", "which the fixture stands for"
    assert f"OK: {2 * products} images would be queued" in run(capsys, before[1], "")
    answer = run(capsys, before[2], "")
    found = re.search(r"Batch (\w+) ", answer)
    assert found is not None
    batch = found[1]
    assert night(tmp_path) == 2 * products
    assert f"{2 * products} done" in run(capsys, before[3], batch)

    context = browser.new_context(base_url=farm.address)
    page = context.new_page()
    page.set_default_timeout(SLOW_MS)
    page.goto(f"/batches/{batch}")
    for number in range(rejected):
        page.locator(".sheet li a").nth(3 * number).focus()
        page.keyboard.press("r")
    see(page, f"document.querySelectorAll('.mark-of.rejected').length === {rejected}")
    page.get_by_text(f"Re-roll {rejected} rejected").click()
    page.get_by_role("button", name="Render again").click()
    page.wait_for_url("**notice=*")
    context.close()
    # Opening the page, each verdict, and two clicks.
    actions += 1 + rejected + 2
    assert actions < MOST_ACTIONS
    assert night(tmp_path) == rejected

    for words in after:
        answer = run(capsys, words, batch)
    assert "All rules kept" in answer
    for channel, smallest in (("shopify", 2048), ("ebay", 500)):
        files = sorted(os.listdir(tmp_path / "out" / channel))
        assert len(files) == 2 * products
        assert {name[:5] for name in files} == {f"A-{number:03}" for number in range(products)}
        for name in files:
            path = tmp_path / "out" / channel / name
            with Image.open(path) as image:
                assert image.format == "JPEG" and max(image.size) >= smallest and path.stat().st_size < 12e6
        lines = (tmp_path / "out" / f"{channel}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2 * products and all(json.loads(line)["passes"] for line in lines)
