"""Reviews over REST: who may vote, under which name, and what is refused; in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.settings import read_settings
from jobs.board.access import read_access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.farm import open_farm
from tests.jobs.board.conftest import OPERATOR, VIEWER
from tests.support.finished_batch import finished_batch

REVIEWER = "correct-horse-battery-reviewer"
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return finished_batch(tmp_path, monkeypatch, ("A-1", "A-1-s2", "B"), done=2)


@pytest.fixture
def ask(batch: str, tmp_path: Path) -> Iterator[Ask]:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"operator={OPERATOR}\nreviewer={REVIEWER}  # anna\nviewer={VIEWER}\n")
    with open_farm(read_settings({})) as farm, asyncio.Runner() as runner:
        app = make_app(Board(farm, read_access(str(tokens))))

        def ask(token: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
            return runner.run(_call(app, token, method, path, body))

        yield ask


async def _call(app: Any, token: str, method: str, path: str, body: Any) -> tuple[int, Any]:
    path, _, query = path.partition("?")
    headers = {"authorization": f"Bearer {token}", "host": "farm", "content-type": "application/json"}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "scheme": "http",
        "http_version": "1.1",
        "client": ("127.0.0.1", 1),
        "server": ("farm", 80),
        "root_path": "",
    }
    sent: list[Any] = []
    request = [{"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}]

    async def receive() -> Any:
        return request.pop() if request else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    data = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], data if path.endswith(".webp") else json.loads(data)


def test_reviewers_vote_under_their_own_name(ask: Ask, batch: str) -> None:
    review = f"/api/v1/batches/{batch}/review"
    _, before = ask(VIEWER, "GET", review)
    assert before["counts"]["unreviewed"] == 2 and len(before["images"]) == 3
    vote = {"images": ["A-1"], "verdict": "reject", "reviewer": "somebody else"}
    assert ask(VIEWER, "POST", review, vote)[0] == 403
    status, answer = ask(REVIEWER, "POST", review, vote)
    assert status == 200 and answer["images"][0]["votes"][0]["reviewer"] == "anna"
    assert ask(OPERATOR, "POST", review, vote | {"verdict": "keep"})[1]["images"][0]["verdict"] == "disputed"
    # Re-rolls cost slots: an operator orders them.
    reroll = f"/api/v1/batches/{batch}/reroll"
    assert ask(REVIEWER, "POST", reroll, {})[0] == 403
    assert ask(REVIEWER, "POST", f"/api/v1/jobs/{before['images'][0]['job']}/cancel")[0] == 403
    assert ask(OPERATOR, "POST", reroll, {})[1]["images"] == [], "a disputed image is not a rejected one"
    _, page = ask(VIEWER, "GET", f"{review}?verdict=disputed&limit=1")
    assert [image["custom_id"] for image in page["images"]] == ["A-1"] and page["next"] is None


def test_what_is_refused(ask: Ask, batch: str) -> None:
    review = f"/api/v1/batches/{batch}/review"
    job = ask(VIEWER, "GET", review)[1]["images"][1]["job"]
    for body, status, text in (
        ({"images": ["nosuch"], "verdict": "keep"}, 400, "is no image of this batch"),
        ({"images": ["\0"], "verdict": "keep"}, 400, "is no image of this batch"),
        ({"images": ["\ud800"], "verdict": "keep"}, 422, "valid string"),
        ({"images": ["B"], "verdict": "keep"}, 400, "is queued"),
        ({"images": ["A-1"]}, 400, "says nothing"),
        ({"images": ["A-1"], "verdict": "nice"}, 422, "verdict"),
        ({"images": [{"custom_id": "A-1", "job": job}], "verdict": "keep"}, 409, "re-rolled meanwhile"),
    ):
        answered, answer = ask(OPERATOR, "POST", review, body)
        assert (answered, text in answer["error"]) == (status, True), answer
    assert ask(OPERATOR, "POST", "/api/v1/batches/nosuch/review", {"images": ["A-1"], "note": "x"})[0] == 400
    assert ask(VIEWER, "GET", review)[1]["counts"]["unreviewed"] == 2


def test_images_are_rolled_again_with_another_prompt(ask: Ask, batch: str) -> None:
    changes = {"images": ["A-1-s2"], "prompt": "{prompt}, from above"}
    status, answer = ask(OPERATOR, "POST", f"/api/v1/batches/{batch}/reroll", changes)
    assert status == 200, answer
    _, job = ask(VIEWER, "GET", f"/api/v1/jobs/{answer['images'][0]['job']}")
    assert job["spec"]["prompt"] == "a vase, from above" and job["state"] == "queued"
    assert job["batches"] == [{"batch": batch, "custom_id": "A-1-s2"}]


def test_a_thumbnail_is_a_small_webp(ask: Ask, batch: str) -> None:
    first, _, waiting = ask(VIEWER, "GET", f"/api/v1/batches/{batch}/review")[1]["images"]
    status, data = ask(VIEWER, "GET", f"/jobs/{first['job']}/thumbnail.webp")
    assert (status, data[:4], data[8:12]) == (200, b"RIFF", b"WEBP") and len(data) < 30_000
    assert ask(VIEWER, "GET", f"/jobs/{waiting['job']}/thumbnail.webp")[0] == 404
