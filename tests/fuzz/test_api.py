"""Requests to the board's API and forms, in its own process: an answer below 500 to each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, unquote

import pytest
from sqlalchemy import func, select

from infra.settings import read_settings
from jobs.board.access import Access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.db.tables import batches, entries
from jobs.farm import open_farm
from tests.fuzz import values
from tests.fuzz.campaign import Result, run
from tests.support.services import postgres_server

_NAMES = (
    "queue", "owner", "priority", "ranks", "not_before", "deadline", "verb", "draining", "paused",
    "group_limit", "time_window", "batch", "file", "template", "defaults", "ignore", "shares", "images",
    "limit", "after", "search", "state", "attempt", "n", "seeds", "grid", "dry_run",
)  # fmt: skip
_HEADERS = tuple(
    name.encode()
    for name in [
        "origin",
        "content-length",
        "cookie",
        "authorization",
        "accept",
        "content-type",
        "sec-fetch-site",
        "host",
    ]
)
_VALUES = (
    b"http://[", b"9" * 5000, b"\xff\xfe", b"Bearer x", b"text/html", b"multipart/form-data; boundary=",
    b"application/x-www-form-urlencoded", b"chorale_session=x;;=",
)  # fmt: skip
_DAMAGED = (
    b"", b"{", b"[" * 100_000, b"\xff", b'{"prompt": ' + b"9" * 5000 + b"}", b"null", b'"x"',
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass
class Api:
    """The application, called without a socket."""

    app: Any
    paths: tuple[tuple[str, str], ...]
    loop: asyncio.AbstractEventLoop
    board: Board

    def make(self, random: Random) -> Call:
        method, path = random.choice(self.paths)
        if random.random() < 0.05:
            path = values.text(random)
        while "{" in path and "}" in path:
            before, _, rest = path.partition("{")
            _, _, after = rest.partition("}")
            given = random.choice(("cancel", "retry", "default", "0" * 16, "a", values.text(random)))
            path = f"{before}{quote(given[:300], errors='replace', safe='')}{after}"
        query = "&".join(
            f"{_quoted(str(_name(random)))}={_quoted(_text(random))}"
            for _ in range(random.choice((0, 0, 1, 2)))
        )
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        if random.random() < 0.1:
            headers.append((random.choice(_HEADERS), random.choice(_VALUES)))
        return Call(method, path, query, tuple(headers), _body(random))

    def judge(self, call: Call) -> str:
        before = self._counts()
        status, body = self.loop.run_until_complete(self._send(call))
        assert status < 500, (status, body[:800])
        assert b"Traceback" not in body
        if status >= 400 and call.path.startswith("/api/v1/") and call.method != "HEAD" and status != 405:
            assert "error" in json.loads(body), body[:300]
        if call.method != "GET" and status >= 400:
            assert self._counts() == before, "refused, and yet something was queued"
        return f"{status // 100}xx"

    def _counts(self) -> tuple[int, int]:
        with self.board.farm.database.read() as connection:
            found = (
                connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in (batches, entries)
            )
            return tuple(found)  # type: ignore[return-value]

    async def _send(self, call: Call) -> tuple[int, bytes]:
        sent = asyncio.Event()
        status, parts = 0, []
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                await sent.wait()
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": call.body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    sent.set()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": call.method,
            "scheme": "http",
            "path": unquote(call.path),
            "raw_path": call.path.encode(errors="replace"),
            "root_path": "",
            "query_string": call.query.encode(),
            "headers": list(call.headers),
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 80),
        }
        await self.app(scope, receive, send)
        return status, b"".join(parts)


def _quoted(text: str) -> str:
    return quote(text[:300], errors="replace")


def _name(random: Random) -> Any:
    return random.choice(_NAMES) if random.random() < 0.7 else values.key(random)


def _text(random: Random) -> str:
    try:
        return str(random.choice(values.NUMBERS)) if random.random() < 0.3 else values.text(random)
    except ValueError:
        return "9" * 5000


def _body(random: Random) -> bytes:
    roll = random.random()
    if roll < 0.1:
        return random.choice(_DAMAGED)
    found = values.as_json(values.spec_values(random))
    if isinstance(found, dict):
        for _ in range(random.choice((0, 0, 1, 2))):
            found[str(_name(random))] = values.json_value(random)
    try:
        return json.dumps(found).encode()
    except (ValueError, RecursionError):
        return b"{}"


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def api(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    loop = asyncio.new_event_loop()
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    with open_farm(read_settings({"database_url": url})) as farm:
        board = Board(farm, Access())
        app = make_app(board)
        found = []
        for path, verbs in app.app.openapi()["paths"].items():
            found += [(verb.upper(), path) for verb in verbs]
        found += [
            ("GET", "/"),
            ("GET", "/jobs"),
            ("POST", "/submit"),
            ("POST", "/submit/batch"),
            ("GET", "/batches/{batch}"),
        ]
        found = [(method, path) for method, path in found if "live" not in path and "events" not in path]
        yield Api(app, tuple(found), loop, board)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def campaign(cases: int, api: Api) -> Result:
    return run("API calls", cases, api.make, api.judge)


def test_short(api: Api) -> None:
    campaign(150, api).check()


@pytest.mark.slow
def test_long(api: Api) -> None:
    campaign(5_000, api).check()
