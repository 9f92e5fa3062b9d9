"""Webhooks: a night is one message, signed, tried again until it is taken, and never about the past."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from sqlalchemy import select, update
from standardwebhooks import Webhook as Receiver
from standardwebhooks import WebhookVerificationError

from infra.database import Database, now
from infra.errors import NotifyFailed
from infra.settings import Settings
from jobs.db.follow_ups import FollowUp
from jobs.db.queues import set_queue
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, Receipt, submit
from jobs.db.tables import follow_ups, jobs, webhooks
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up
from jobs.thumbnail_links import job_of_thumbnail, thumbnail_link
from jobs.webhooks.delivery import deliver
from jobs.webhooks.due import note_due
from jobs.webhooks.message import body_of
from jobs.webhooks.registry import add_webhook, list_webhooks, remove_webhook, wanted_webhook
from render.errors import BadInput
from render.spec import Spec

NOON = 1_000_000_800.0 // 86_400 * 86_400 + 12 * 3600


class Inbox:
    """What a web server on a loopback port has got; it answers with `status`."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        self.endless, self.left = False, threading.Event()
        """Whether its answer has no end, and whether the sender has left it."""
        inbox = self

        class Hook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(inbox.status)
                if inbox.status == 302:
                    self.send_header("location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()
                if inbox.endless:
                    self._write_on()

            def _write_on(self) -> None:
                try:
                    while True:
                        self.wfile.write(bytes(1 << 16))
                except OSError:
                    inbox.left.set()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Hook)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T0/secret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox()
    yield inbox
    inbox.server.shutdown()
    inbox.server.server_close()


@pytest.fixture
def farm(database: Database) -> Farm:
    settings = Settings(webhook_hosts="127.0.0.1", board_url="https://farm.example/")
    with database.write() as connection:
        set_queue(connection, "night", {"priority": 50})
    return Farm(settings=settings, database=database, url="")


def add(farm: Farm, url: str, **wanted: Any) -> dict[str, Any]:
    options = {"kind": None, "per": None, "queue": None, "batch": None, "owner": None} | wanted
    with farm.database.write() as connection:
        return add_webhook(connection, wanted_webhook(url, hosts=farm.settings.webhook_hosts, **options))


def submit_seeds(farm: Farm, *seeds: int, queue: str = "night") -> Receipt:
    specs = {seed: Spec(prompt="a vase", seed=seed, width=128, height=128) for seed in seeds}
    items = [BatchItem(row=seed, custom_id=f"c{seed}", spec=spec) for seed, spec in specs.items()]
    return submit(farm.database, items, "feed <b>.csv", JobOptions(owner="anna", queue=queue))


def end(farm: Farm, receipt: Receipt, *numbers: int, state: str = "done", reason: str = "") -> None:
    with farm.database.write() as connection:
        for number in numbers:
            job = receipt.jobs[number][1]
            change_state(connection, job, "queued", "placing", "")
            change_state(connection, job, "placing", "rendering", "")
            if state == "failed":
                change_state(connection, job, "rendering", "failed", reason)
                continue
            change_state(connection, job, "rendering", "publishing", "")
            change_state(connection, job, "publishing", "done", "")


def tell(farm: Farm, moment: float | None = None) -> int:
    """A round of follow-ups, as an agent without a broker does it."""
    due = note_due(farm, moment)
    for id in due:
        do_follow_up(farm, id)
    return len(due)


def test_a_night_is_one_signed_message(farm: Farm, inbox: Inbox) -> None:
    made = add(farm, inbox.url, queue="night")
    first, second = submit_seeds(farm, 1, 2), submit_seeds(farm, 3, 4)
    other = submit_seeds(farm, 9, queue="day")
    end(farm, first, 0, 1)
    end(farm, other, 0)
    assert tell(farm) == 0, "the night is not over"
    end(farm, second, 0)
    end(farm, second, 1, state="failed", reason="gave up after 4 attempts: no memory")
    assert tell(farm) == 1 and tell(farm) == 0
    ((headers, body),) = inbox.got
    Receiver(made["secret"]).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Receiver(made["secret"]).verify(body.replace(b"night", b"nicht"), headers)
    data = json.loads(body)["data"]
    assert data["title"] == "3 images done, 1 failed in queue night"
    assert data["jobs"] == {"done": 3, "failed": 1, "cancelled": 0}
    assert data["failures"] == [{"reason": "gave up after 4 attempts: no memory", "jobs": 1}]
    assert {each["batch"]: each["done"] for each in data["batches"]} == {first.batch: 2, second.batch: 1}
    assert data["url"] == "https://farm.example/jobs?queue=night"
    assert data["thumbnail"].startswith("https://farm.example/thumbnails/")


def test_what_ended_before_is_never_told(farm: Farm, inbox: Inbox) -> None:
    past = submit_seeds(farm, 1)
    end(farm, past, 0)
    for per in ("job", "batch", "queue"):
        add(farm, inbox.url, per=per)
    assert tell(farm) == 0
    end(farm, submit_seeds(farm, 2), 0)
    assert tell(farm) == 3
    assert [message["data"]["jobs"]["done"] for message in inbox.messages] == [1, 1, 1]


def test_a_batch_is_told_once_it_has_ended(farm: Farm, inbox: Inbox) -> None:
    receipt = submit_seeds(farm, 1, 2, 3)
    add(farm, inbox.url, batch=receipt.batch)
    end(farm, submit_seeds(farm, 4), 0)
    end(farm, receipt, 0, 1)
    assert tell(farm) == 0
    end(farm, receipt, 2)
    assert tell(farm) == 1 and tell(farm) == 0
    data = inbox.messages[0]["data"]
    assert data["title"] == f"3 images done in batch {receipt.batch} (feed <b>.csv)"
    assert data["url"] == f"https://farm.example/batches/{receipt.batch}"


def test_a_queue_whose_window_closes_is_told_with_what_is_left_queued(farm: Farm, inbox: Inbox) -> None:
    with farm.database.write() as connection:
        set_queue(connection, "night", {"time_window": "22:00-07:00 UTC"})
    add(farm, inbox.url, queue="night")
    receipt = submit_seeds(farm, 1, 2)
    end(farm, receipt, 0)
    assert tell(farm, moment=NOON + 11 * 3600) == 0
    assert tell(farm, moment=NOON) == 1


def test_what_ended_a_day_ago_is_told_although_others_go_on(farm: Farm, inbox: Inbox) -> None:
    made = add(farm, inbox.url)
    receipt = submit_seeds(farm, 1, 2)
    end(farm, receipt, 0)
    with farm.database.write() as connection:
        connection.execute(update(webhooks).values(told=now() - 200_000))
        mine = update(jobs).where(jobs.c.id == receipt.jobs[0][1])
        connection.execute(mine.values(ended=now() - 100_000))
    assert tell(farm) == 1
    assert inbox.got[0][0]["webhook-id"].startswith(f"webhook:{made['id']}:")


@pytest.mark.parametrize("status", [500, 302])
def test_a_receiver_that_refuses_is_told_again(farm: Farm, inbox: Inbox, status: int) -> None:
    add(farm, inbox.url, per="job")
    end(farm, submit_seeds(farm, 1), 0)
    inbox.status = status
    (id,) = note_due(farm)
    refused = do_follow_up(farm, id)
    assert refused.retry_s == 5.0 and f"answers with status {status}" in refused.text
    assert "secret" not in refused.text
    inbox.status = 204
    assert do_follow_up(farm, id).retry_s is None
    assert [headers["webhook-id"] for headers, _ in inbox.got] == [id, id]
    with farm.database.read() as connection:
        assert connection.execute(select(follow_ups.c.ended)).scalar() is not None


def test_an_answer_without_an_end_is_not_read(farm: Farm, inbox: Inbox) -> None:
    add(farm, inbox.url, per="job")
    end(farm, submit_seeds(farm, 1), 0)
    inbox.status, inbox.endless = 200, True
    assert tell(farm) == 1 and len(inbox.got) == 1
    assert inbox.left.wait(60)


def test_one_that_was_removed_is_told_nothing(farm: Farm, inbox: Inbox) -> None:
    made = add(farm, inbox.url, per="job")
    end(farm, submit_seeds(farm, 1), 0)
    (id,) = note_due(farm)
    with farm.database.write() as connection:
        remove_webhook(connection, made["id"])
        assert list_webhooks(connection) == []
    assert do_follow_up(farm, id).text == "the webhook was removed" and inbox.got == []


def test_a_private_network_is_reached_only_if_it_is_listed(farm: Farm, inbox: Inbox) -> None:
    add(farm, inbox.url, per="job")
    end(farm, submit_seeds(farm, 1), 0)
    (id,) = note_due(farm)
    with farm.database.read() as connection:
        payload = connection.execute(select(follow_ups.c.payload).where(follow_ups.c.id == id)).scalar_one()
    closed = Farm(settings=Settings(), database=farm.database, url="")
    with pytest.raises(NotifyFailed, match="is in a private network; name its network"):
        deliver(closed, FollowUp(id=id, kind="webhook", payload=payload))
    assert inbox.got == []


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("ftp://127.0.0.1/x", "not an http"),
        ("https://", "not an http"),
        ("https://[", "not a URL"),
        ("https://elsewhere.example/x", "not in CHORALE_WEBHOOK_HOSTS"),
        ("https://127.0.0.1/" + "x" * 2000, "more than 2000"),
    ],
)
def test_a_url_that_cannot_be_told_is_refused(farm: Farm, url: str, part: str) -> None:
    with pytest.raises(BadInput, match=f"url.*{part}"):
        add(farm, url)


@pytest.mark.parametrize("wanted", [{"batch": "8c1f00aa3b52"}, {"queue": "nigth"}, {"kind": "irc"}])
def test_an_unknown_batch_queue_or_kind_is_refused(farm: Farm, wanted: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=next(iter(wanted))):
        add(farm, "https://127.0.0.1/x", **wanted)


def test_chat_programs_get_their_own_forms() -> None:
    hosts = "hooks.slack.com,*.webhook.office.com"
    none: dict[str, Any] = {"kind": None, "per": None, "queue": None, "batch": None, "owner": None}
    assert wanted_webhook("https://hooks.slack.com/services/T0", hosts=hosts, **none).kind == "slack"
    assert wanted_webhook("https://shop.webhook.office.com/x", hosts=hosts, **none).kind == "teams"
    counts = {"done": 1, "failed": 0, "cancelled": 0}
    message = {
        "title": "2 images done in <!channel> & more",
        "failures": [{"reason": "no memory", "jobs": 3}],
        "batches": [{"batch": "b1", "name": "<@U1>", "url": None, **counts}] * 2,
        "more_batches": 1,
        "thumbnail": "https://farm.example/t.jpg",
        "url": "https://farm.example/",
    }
    slack = body_of("slack", message)
    assert slack["text"] == "2 images done in &lt;!channel&gt; &amp; more"
    assert (
        "&lt;@U1&gt;" in slack["blocks"][0]["text"]["text"] and "<" not in slack["blocks"][0]["text"]["text"]
    )
    assert slack["blocks"][0]["accessory"]["image_url"] == message["thumbnail"]
    assert slack["blocks"][1]["elements"][0]["url"] == message["url"]
    card = body_of("teams", message)["attachments"][0]["content"]
    texts = [part["text"] for part in card["body"] if part["type"] == "TextBlock"]
    assert texts[1:] == [
        "3 failed: no memory",
        "b1 (<@U1>): 1 done",
        "b1 (<@U1>): 1 done",
        "and 1 batch more",
    ]
    assert card["actions"][0]["url"] == message["url"]


def test_a_thumbnail_s_address_is_of_one_job_and_one_farm() -> None:
    link = thumbnail_link("https://farm.example", b"one farm", "8c1f00aa3b5271de")
    signed = link.removeprefix("https://farm.example/thumbnails/").removesuffix(".jpg")
    assert job_of_thumbnail(b"one farm", signed) == "8c1f00aa3b5271de"
    assert job_of_thumbnail(b"another", signed) is None
    assert job_of_thumbnail(b"one farm", signed.replace("8c1f", "8c2f")) is None
    assert job_of_thumbnail(b"one farm", base64.b64encode(b"x").decode()) is None
