"""Reports are sent once, by a real webhook and a real mail server."""

import json
import threading
from collections.abc import Iterator
from email import message_from_string
from email.policy import default
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from pydantic import SecretStr

from infra.database import Database
from infra.errors import BadSetting, NotifyFailed
from infra.notify import mail, post
from infra.settings import Settings
from jobs import report_delivery
from jobs.db.commands import apply_command
from jobs.db.queries import Filter, job_ids
from jobs.db.queues import set_queue
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up
from jobs.report import make_report
from jobs.report_delivery import note_due
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
        report_webhook=SecretStr(f"http://127.0.0.1:{web.server_port}/hook"),
        report_mail="anna@example.org",
        smtp_url=SecretStr(f"smtp://127.0.0.1:{post.port}"),
    )
    yield Farm(settings=settings, database=database, url="")
    post.stop()
    web.shutdown()
    web.server_close()


def send_due(farm: Farm, moment: float | None = None) -> int:
    """As an agent does without a broker."""
    due = note_due(farm, moment)
    for id in due:
        do_follow_up(farm, id)
    return len(due)


def submit_job(farm: Farm, queue: str = "default", name: str = "one") -> str:
    spec = Spec(prompt="a vase", width=128, height=128)
    items = [BatchItem(row=1, custom_id="1", spec=spec)]
    return submit(farm.database, items, name, JobOptions(owner="me", queue=queue)).batch


def cancel(farm: Farm) -> None:
    with farm.database.write() as connection:
        (job,) = job_ids(connection, Filter())
        apply_command(connection, "cancel", job, "me")


def test_a_batch_that_has_ended_is_reported_once(farm: Farm, inbox: Inbox) -> None:
    batch = submit_job(farm)
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
    submit_job(farm, "days")
    six = NOON + 6 * 3600
    sent = [send_due(farm, moment) for moment in (six, NOON, six, six, NOON + 86_400, six + 86_400)]
    assert sent == [0, 0, 1, 0, 0, 1]
    assert inbox.posts[0]["text"] == "Chorale: 1 queued (queue days)"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:nine"])
def test_a_report_that_cannot_be_delivered_is_logged_and_stops_nothing(
    farm: Farm, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    lost = Settings(report_webhook=SecretStr(f"http://{address}/nobody"))
    submit_job(farm)
    cancel(farm)
    assert send_due(Farm(settings=lost, database=farm.database, url="")) == 1
    assert "check CHORALE_REPORT_WEBHOOK" in caplog.text


def test_a_webhook_does_not_follow_redirects() -> None:
    """Its server must not make the farm ask other servers, such as those of a private network."""
    asked: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/inside")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(NotifyFailed, match="302"):
            post(f"http://127.0.0.1:{web.server_port}/hook", "a report", {})
        web.shutdown()
    assert asked == ["/hook"]


def test_one_failing_channel_does_not_stop_the_other(farm: Farm, inbox: Inbox) -> None:
    submit_job(farm)
    cancel(farm)
    settings = farm.settings.model_copy(update={"report_webhook": SecretStr("http://127.0.0.1:9/nobody")})
    (id,) = note_due(half := Farm(settings=settings, database=farm.database, url=""))
    assert do_follow_up(half, id).retry_s == 5.0
    assert (len(inbox.mails), len(inbox.posts)) == (1, 0)
    # The next try sends by the channel that failed, and a third one finds nothing to do.
    assert do_follow_up(farm, id).text.endswith("was delivered by mail and webhook")
    assert do_follow_up(farm, id).text == "ended already, or another worker is at it"
    assert (len(inbox.mails), len(inbox.posts)) == (1, 1)


@pytest.mark.parametrize(
    "name", ["two\nlines", "a\r\nBcc: all@example.org", "a\x00b\x1b[31m", "\u2028 x" * 60]
)
def test_names_with_line_breaks_and_control_characters_do_not_stop_reports(
    farm: Farm, inbox: Inbox, name: str
) -> None:
    if "\x00" in name and farm.database.engine.dialect.name == "postgresql":
        pytest.skip("PostgreSQL stores no NUL")
    submit_job(farm, name=name)
    cancel(farm)
    assert send_due(farm) == 1
    (mail,) = inbox.mails
    parsed = message_from_string(mail, policy=default)
    assert parsed["Subject"].startswith("Chorale: 1 cancelled (batch ") and parsed["Bcc"] is None
    assert len(inbox.posts) == 1


def test_a_lone_surrogate_does_not_stop_a_mail(farm: Farm, inbox: Inbox) -> None:
    mail(farm.settings.smtp_url.get_secret_value(), "anna@example.org", "a", "b \ud800", "<p>\ud800</p>")
    assert len(inbox.mails) == 1


def test_a_report_that_cannot_be_made_does_not_stop_the_next(
    farm: Farm, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submit_job(farm, name="first")
    submit_job(farm, name="second")
    cancel(farm)
    made: list[object] = []

    def fail_once(connection: object, scope: object) -> dict[str, Any]:
        made.append(scope)
        if len(made) == 1:
            raise KeyError("a bug")
        return make_report(connection, scope)  # type: ignore[arg-type]

    monkeypatch.setattr(report_delivery, "make_report", fail_once)
    assert send_due(farm) == 2
    assert len(inbox.posts) == len(inbox.mails) == 1
    assert "failed: 'a bug'" in caplog.text


def test_a_webhook_that_is_no_http_url_is_refused_without_its_secret() -> None:
    with pytest.raises(BadSetting) as refused:
        post("ftp://chat.example/hooks/s3cr3t", "text", {})
    assert "ftp://..." in str(refused.value) and "s3cr3t" not in str(refused.value)
