"""The page of a report: what stands on it, and the picture of its images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiosmtpd.controller import Controller
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import update

from infra.database import Database
from infra.settings import Settings
from infra.store.local import LocalStore
from jobs.cli.main import main
from jobs.db.folders import image_folder
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up
from jobs.report_delivery import note_due
from jobs.report_page import as_html
from jobs.report_picture import make_picture, thumbnails
from render.spec import Spec
from tests.support.services import free_port

LINE = {
    "jobs": 3,
    "done": 1,
    "failed": 1,
    "megapixels": 1.5,
    "slot_seconds": 7200.0,
    "lost_slot_seconds": 1800.0,
}
REPORT: dict[str, Any] = {
    "at": 1_764_486_000.0,
    "since": 1_764_450_000.0,
    "jobs": {"done": 1_234, "failed": 26, "queued": 1},
    "missing": ["3fa9"],
    "failed": [
        {"job": f"f{n:02}", "prompt": f"vase <{n}>", "reason": "NaN", "node": "n1"} for n in range(26)
    ],
    "reasons": [{"reason": "NaN & <more>", "jobs": 26, "nodes": ["n1", "n2"]}],
    "images": [],
    "megapixels": 4_321.0,
    "model_seconds": 3600.0,
    "slot_seconds": 7200.0,
    "lost_slot_seconds": 1800.0,
    "idle_slot_seconds": 900.0,
    "retries": 1,
    "owners": {"anna": LINE, "<ben>": LINE},
    "batches": {"8c1f (feed.csv)": LINE},
    "nodes": {
        "n1": {
            "slot_seconds": 7200.0,
            "lost_slot_seconds": 0.0,
            "idle_slot_seconds": 36.0,
            "failed_attempts": 4.0,
        }
    },
    "estimate": [
        {"queue": "night", "jobs": 1, "slot_hours": 0.25, "ends": None, "unknown": 0, "fits": False}
        | {"cannot_run": 1, "cannot_run_reason": "needs 16 slots, the farm has 2", "deadlines_missed": 0}
    ],
    "slowest": [{"job": "aa", "prompt": "a long one", "slot_seconds": 4000.0}],
    "receipts": [
        {"kind": "owner", "name": "anna", "price": 3.8},
        {"kind": "owner", "name": "<ben>", "price": 0.0},
    ],
}


def test_the_page_tells_what_was_made_and_what_was_not() -> None:
    page = as_html(REPORT, "queue <night>", "cid:x")
    for part in (
        "<h1>1,234 images done, 26 failed</h1>",
        "queue &lt;night&gt;, ",
        "NaN &amp; &lt;more&gt;",
        "vase &lt;19&gt;",
        "and 6 more",
        "&lt;ben&gt;",
        "3.80",
        "no: 1 job needs 16 slots, the farm has 2",
        '<img src="cid:x"',
        "Failed attempts",
        "4,000 s",
    ):
        assert part in page, part
    assert "<ben>" not in page and "vase &lt;20&gt;" not in page


def test_a_report_of_nothing_and_one_of_an_older_board_are_pages() -> None:
    nothing = REPORT | {"jobs": {}, "failed": [], "owners": {}, "batches": {}, "slowest": [], "missing": []}
    older = {
        name: value
        for name, value in nothing.items()
        if name not in ("reasons", "nodes", "estimate", "megapixels", "receipts", "images")
    }
    page = as_html(older)
    assert "<h1>No image done</h1>" in page and "<table>" not in page and "<img" not in page


def encoded(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, "WEBP")
    return buffer.getvalue()


def test_a_picture_shows_what_can_be_read(tmp_path: Path) -> None:
    images = LocalStore(tmp_path)
    for folder, data in (("a", encoded(400, 100)), ("broken", b"no image"), ("b", encoded(64, 64))):
        images.within(folder).put("preview.webp", data, "image/webp")
    found = list(thumbnails(images, ["a", "missing", "broken", "b"]))
    assert len(found) == 2
    sizes = []
    for count in (1, 2, 5):
        picture = make_picture([*found, *found, *found, b"no image"][-count - 1 :])
        assert picture is not None
        with Image.open(io.BytesIO(picture)) as image:
            sizes.append(image.size)
    assert sizes == [(240, 240), (488, 240), (984, 488)]
    assert make_picture([b"no image"]) is None and make_picture([]) is None


@pytest.fixture
def finished(database: Database, tmp_path: Path) -> Farm:
    """A farm with one finished image, in a batch that has ended."""
    images = LocalStore(tmp_path / "images")
    spec = Spec(prompt="a <red> vase", width=128, height=128)
    submit(database, [BatchItem(row=1, custom_id="1", spec=spec)], "feed.csv", JobOptions(owner="anna"))
    with database.write() as connection:
        connection.execute(update(jobs).values(state="done", root=jobs.c.digest, ended=jobs.c.created))
        folder = image_folder(connection, connection.execute(jobs.select()).one().id)
    images.within(folder).put("preview.webp", encoded(128, 128), "image/webp")
    settings = Settings(
        store_url=(tmp_path / "images").as_uri(),
        report_mail="anna@shop.example",
        smtp_url=SecretStr(f"smtp://127.0.0.1:{free_port()}"),
    )
    return Farm(settings=settings, database=database, url="")


@pytest.fixture
def letters(finished: Farm) -> Iterator[list[EmailMessage]]:
    got: list[EmailMessage] = []

    class Inbox:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            got.append(message_from_bytes(envelope.content, policy=default))  # type: ignore[arg-type]
            return "250 OK"

    port = int(finished.settings.smtp_url.get_secret_value().rpartition(":")[2])
    server = Controller(Inbox(), hostname="127.0.0.1", port=port)
    server.start()
    yield got
    server.stop()


def test_the_mail_of_a_report_has_its_images(finished: Farm, letters: list[EmailMessage]) -> None:
    (id,) = note_due(finished)
    assert "was delivered by mail" in do_follow_up(finished, id).text
    (letter,) = letters
    page = letter.get_body(("html",))
    assert page is not None and "cid:picture@chorale" in page.get_content()
    assert "1 image done" in page.get_content() and "batch " in page.get_content()
    assert [part["content-id"] for part in letter.walk() if part.get_content_type() == "image/jpeg"] == [
        "<picture@chorale>"
    ]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_command_writes_a_page_with_its_images(
    finished: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHORALE_DATABASE_URL", f"sqlite:///{tmp_path / 'farm.db'}")
    monkeypatch.setenv("CHORALE_STORE_URL", finished.settings.store_url)
    page = tmp_path / "night.html"
    with pytest.raises(SystemExit) as ended:
        main(["report", "--html", str(page), "--price", "2"])
    assert not ended.value.code, capsys.readouterr().err
    text = page.read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in text and "1 image done" in text and "Price" in text
    assert "Slowest" in text and "a &lt;red&gt; vase" in text
