"""Reports are sent once, by a real webhook and a real mail server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from infra.database import Database
from infra.errors import BadSetting
from infra.notify import post
from infra.settings import Settings
from jobs.db.commands import apply_command
from jobs.db.queries import Filter, job_ids
from jobs.db.queues import set_queue
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.farm import Farm
from jobs.report_delivery import send_due
from render.spec import Spec
from tests.support.services import free_port

NOON = 1_000_000_800.0 // 86_400 * 86_400 + 12 * 3600


class Inbox:
    """What a web server and a mail server on loopback ports have got."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.mails: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(envelope.content.decode())
        return "250 OK"


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def farm(database: Database, inbox: Inbox) -> Iterator[Farm]:
    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            inbox.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    post = Controller(inbox, hostname="127.0.0.1", port=free_port())
    post.start()
    settings = Settings(
        report_webhook=f"http://127.0.0.1:{web.server_port}/hook",
        report_mail="anna@example.org",
        smtp_url=f"smtp://127.0.0.1:{post.port}",
    )
    yield Farm(settings=settings, database=database, url="")
    post.stop()
    web.shutdown()
    web.server_close()


def ask(farm: Farm, queue: str = "default") -> str:
    spec = Spec(prompt="a vase", width=128, height=128)
    asked = [BatchItem(row=1, custom_id="1", spec=spec)]
    return submit(farm.database, asked, "one", JobOptions(owner="me", queue=queue)).batch


def cancel(farm: Farm) -> None:
    with farm.database.write() as connection:
        (job,) = job_ids(connection, Filter())
        apply_command(connection, "cancel", job, "me")


def test_a_batch_that_has_ended_is_reported_once(farm: Farm, inbox: Inbox) -> None:
    batch = ask(farm)
    assert send_due(farm) == 0
    cancel(farm)
    assert [send_due(farm), send_due(farm)] == [1, 0]
    (post,) = inbox.posts
    assert post["text"] == f"Chorale: 1 cancelled (batch {batch} (one))"
    assert post["report"]["jobs"] == {"cancelled": 1}
    (mail,) = inbox.mails
    assert "To: anna@example.org" in mail and "text/html" in mail


def test_a_queue_whose_window_closes_is_reported_once_a_night(farm: Farm, inbox: Inbox) -> None:
    with farm.database.write() as connection:
        set_queue(connection, "days", {"time_window": "08:00-17:00 UTC"})
    ask(farm, "days")
    six = NOON + 6 * 3600
    sent = [send_due(farm, moment) for moment in (six, NOON, six, six, NOON + 86_400, six + 86_400)]
    assert sent == [0, 0, 1, 0, 0, 1]
    assert inbox.posts[0]["text"] == "Chorale: 1 queued (queue days)"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:nine"])
def test_what_cannot_be_delivered_is_told_and_stops_nothing(
    farm: Farm, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    lost = Settings(report_webhook=f"http://{address}/nobody")
    ask(farm)
    cancel(farm)
    assert send_due(Farm(settings=lost, database=farm.database, url="")) == 1
    assert "check CHORALE_REPORT_WEBHOOK" in capsys.readouterr().err


def test_a_webhook_that_is_no_url_of_the_web_is_refused_without_its_secret() -> None:
    with pytest.raises(BadSetting) as refused:
        post("ftp://chat.example/hooks/s3cr3t", "text", {})
    assert "ftp://..." in str(refused.value) and "s3cr3t" not in str(refused.value)
