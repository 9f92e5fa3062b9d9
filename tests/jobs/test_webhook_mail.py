"""Mail of webhooks, and test messages, by a real mail server on a loopback port."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from aiosmtpd.controller import Controller
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import update

from infra.database import Database
from infra.errors import BadSetting, NotifyFailed
from infra.notify import mail
from infra.settings import Settings
from jobs.board.access import Access, read_access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.db.audit import list_acts
from jobs.db.folders import image_folder
from jobs.db.queues import set_queue
from jobs.db.tables import jobs
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up, kinds_here
from jobs.webhooks.delivery import send_test
from jobs.webhooks.due import note_due
from jobs.webhooks.registry import list_webhooks
from render.errors import BadInput
from tests.jobs.test_webhooks import add, end, submit_seeds
from tests.support.asgi import ask
from tests.support.services import free_port

ANNA = "anna@shop.example"


@dataclass(frozen=True)
class Letters:
    server: Controller
    got: list[EmailMessage]

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.server.port}"


@pytest.fixture
def letters() -> Iterator[Letters]:
    got: list[EmailMessage] = []

    class Inbox:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            letter = message_from_bytes(envelope.content, policy=default)
            got.append(letter)  # type: ignore[arg-type]
            return "250 OK"

    server = Controller(Inbox(), hostname="127.0.0.1", port=free_port())
    server.start()
    yield Letters(server, got)
    server.stop()


@pytest.fixture
def farm(database: Database, letters: Letters, tmp_path: Path) -> Farm:
    settings = Settings(
        smtp_url=SecretStr(letters.url),
        board_url="https://farm.example",
        store_url=(tmp_path / "images").as_uri(),
    )
    with database.write() as connection:
        set_queue(connection, "night", {"priority": 50})
    return Farm(settings=settings, database=database, url="")


def test_a_night_is_one_mail_with_link_reasons_and_the_first_image(
    farm: Farm, letters: Letters, tmp_path: Path
) -> None:
    made = add(farm, ANNA, queue="night")
    assert (made["kind"], made["url"]) == ("mail", f"mailto:{ANNA}") and "secret" not in made
    first, second = submit_seeds(farm, 1, 2), submit_seeds(farm, 3)
    end(farm, first, 0)
    end(farm, first, 1, state="failed", reason="gave up after 4 attempts: no <memory>")
    assert note_due(farm) == [], "the night is not over"
    end(farm, second, 0)
    with farm.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.state == "done").values(root=jobs.c.digest))
        folder = tmp_path / "images" / image_folder(connection, first.jobs[0][1])
    folder.mkdir(parents=True)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "preview.webp")
    (id,) = note_due(farm)
    for _ in range(2):
        do_follow_up(farm, id)
    (letter,) = letters.got
    assert letter["to"] == ANNA and letter["subject"] == "2 images done, 1 failed in queue night"
    assert letter["message-id"] and letter["date"]
    plain, page = letter.get_body(("plain",)), letter.get_body(("html",))
    assert plain is not None and page is not None
    assert "1 failed: gave up after 4 attempts: no <memory>" in plain.get_content()
    assert "https://farm.example/jobs?queue=night" in plain.get_content()
    assert "no &lt;memory&gt;" in page.get_content() and "cid:picture@chorale" in page.get_content()
    pictures = [part for part in letter.walk() if part.get_content_type() == "image/jpeg"]
    assert [part["content-id"] for part in pictures] == ["<picture@chorale>"]
    assert len(list_of(farm)) == 1


def test_the_subject_is_one_line_of_a_length_that_is_shown(farm: Farm, letters: Letters) -> None:
    title = "1 image done in batch 8c1f (two\r\nBcc: all@shop.example \ud800)" + " x" * 400
    mail(farm.settings.smtp_url.get_secret_value(), ANNA, title, "a", "<p>a</p>")
    (letter,) = letters.got
    assert letter["subject"].startswith("1 image done in batch 8c1f (two Bcc: all@shop.example ) x")
    assert len(letter["subject"]) == 300 and letter["bcc"] is None


def test_mail_waits_for_a_process_with_a_mail_server(farm: Farm, letters: Letters) -> None:
    add(farm, ANNA, per="job")
    end(farm, submit_seeds(farm, 1), 0)
    (id,) = note_due(farm)
    without = Farm(settings=Settings(), database=farm.database, url="")
    assert "mail" not in kinds_here(without) and "mail" in kinds_here(farm)
    assert "lacks the settings" in do_follow_up(without, id).text and letters.got == []
    # The image's files are missing: the mail goes without it.
    assert do_follow_up(farm, id).text.startswith(f"mailto:{ANNA} was told: 1 image done")
    assert len(letters.got) == 1


def test_a_test_message_tells_whether_it_arrives(farm: Farm, letters: Letters) -> None:
    made = add(farm, ANNA)
    assert send_test(farm, made["id"]) == f"mailto:{ANNA}"
    assert letters.got[0]["subject"] == "Chorale: a test message"
    with pytest.raises(BadSetting, match=r"smtp_url.*is not set"):
        send_test(Farm(settings=Settings(), database=farm.database, url=""), made["id"])
    gone = Settings(smtp_url=SecretStr(f"smtp://127.0.0.1:{free_port()}"))
    with pytest.raises(NotifyFailed, match="mail server did not accept"):
        send_test(Farm(settings=gone, database=farm.database, url=""), made["id"])
    with pytest.raises(BadInput, match="webhook: 'none' is unknown"):
        send_test(farm, "none")


@pytest.mark.parametrize(
    ("url", "wanted", "part"),
    [
        ("mailto:anna", {}, "is not one mail address"),
        ("mailto:a@b.example,c@d.example", {}, "is not one mail address"),
        ("anna@shop.example\r\nBcc: all@x.example", {"kind": "mail"}, "is not one mail address"),
        ("https://shop.example/x", {"kind": "mail"}, "is not one mail address"),
        (ANNA, {"kind": "slack"}, "is for URLs"),
    ],
)
def test_what_is_no_address_is_refused(farm: Farm, url: str, wanted: dict[str, str], part: str) -> None:
    with pytest.raises(BadInput, match=part):
        add(farm, url, **wanted)


def test_an_address_at_a_host_that_is_not_listed_is_refused(farm: Farm) -> None:
    settings = Settings(webhook_hosts="*.shop.example,shop.example")
    listed = Farm(settings=settings, database=farm.database, url="")
    assert add(listed, ANNA)["kind"] == "mail"
    with pytest.raises(BadInput, match="not in CHORALE_WEBHOOK_HOSTS"):
        add(listed, "anna@elsewhere.example")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_page_lists_adds_tests_and_removes(farm: Farm, letters: Letters) -> None:
    app = make_app(Board(farm, Access()))
    shown = ask(app, "/webhooks", headers={"accept": "text/html"})
    assert shown.status == 200 and b"No webhooks yet" in shown.body
    token = re.search(rb'name="csrf_token" value="([\w-]+)"', shown.body)
    assert token is not None
    cookie = shown.headers["set-cookie"].partition(";")[0]

    def send(path: str, **fields: str) -> Any:
        body = urlencode(fields | {"csrf_token": token[1].decode()}).encode()
        kind = "application/x-www-form-urlencoded"
        return ask(app, path, "POST", body, {"cookie": cookie, "content-type": kind, "accept": "text/html"})

    refused = send("/webhooks", url="ftp://x", owner="<anna>")
    assert refused.status == 400 and b"is not an http(s) URL" in refused.body
    # What was entered is there still.
    assert b'value="ftp://x"' in refused.body and b'value="&lt;anna&gt;"' in refused.body
    made = send("/webhooks", url="https://127.0.0.1:9/services/secret")
    assert made.status == 200 and b"whsec_" in made.body and b"services/secret" not in made.body
    assert b"whsec_" not in ask(app, "/webhooks").body
    send("/webhooks", url=ANNA, per="batch", queue="night")
    hook, mail = (each["id"] for each in list_of(farm))
    tested = send(f"/webhooks/{mail}/do", action="test").headers["location"]
    assert parse_qs(urlsplit(tested).query)["notice"] == [f"A test message was sent to {ANNA}"]
    assert len(letters.got) == 1
    # No address of this machine is reached unless it is listed.
    missed = send(f"/webhooks/{hook}/do", action="test")
    assert missed.status == 400 and b"is in a private network" in missed.body
    assert send(f"/webhooks/{hook}/do", action="remove").status == 303
    assert send(f"/webhooks/{hook}/do", action="burn").status == 400
    assert [each["id"] for each in list_of(farm)] == [mail]
    with farm.database.read() as connection:
        acts = [act["action"] for act in list_acts(connection, 10)]
    assert acts == ["remove webhook", "test webhook", "add webhook", "add webhook"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("path", ["/webhooks", "/api/v1/webhooks"])
def test_the_page_and_the_list_are_for_operators(farm: Farm, tmp_path: Path, path: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(
        "operator=the-token-of-an-operator\nviewer=the-token-of-a-viewer\nreviewer=the-token-of-one\n"
    )
    app = make_app(Board(farm, read_access(str(file))))
    status = {
        role: ask(app, path, headers={"authorization": f"Bearer {token}"}).status
        for role, token in (
            ("operator", "the-token-of-an-operator"),
            ("viewer", "the-token-of-a-viewer"),
            ("reviewer", "the-token-of-one"),
        )
    }
    assert status == {"operator": 200, "viewer": 403, "reviewer": 403}


def list_of(farm: Farm) -> list[dict[str, Any]]:
    with farm.database.read() as connection:
        return list_webhooks(connection)
