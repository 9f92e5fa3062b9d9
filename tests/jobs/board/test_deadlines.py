"""Slow and hanging clients, a database that hangs: each costs one thread or connection for a while."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from infra.settings import read_settings
from jobs.board.access import Access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.board.deadlines import Deadlines, LimitedProtocol, Limits
from jobs.farm import open_farm
from tests.support.asgi import send
from tests.support.cli import wait_until

LIMITS = Limits(body_s=0.3, answer_s=0.3, slow_answer_s=0.6, most_unanswered=3)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with open_farm(read_settings({})) as farm:
        yield Board(farm, Access(), deadlines=Deadlines(LIMITS))


def test_a_hanging_database_does_not_hang_the_board(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, database = threading.Event(), board.farm.database
    read = type(database).read

    @contextmanager
    def hanging(self: Any) -> Iterator[Any]:
        answers.wait()
        with read(self) as connection:
            yield connection

    app = make_app(board)

    async def go() -> None:
        monkeypatch.setattr(type(database), "read", hanging)
        late = await asyncio.gather(*(send(app, "/api/v1/nodes") for _ in range(3)))
        assert [answer.status for answer in late] == [503] * 3
        assert "no answer within 0.3 s" in late[0].json["error"] and "retry-after" in late[0].headers
        # Three threads still wait: further requests are refused before they take a fourth.
        assert "the board waits" in (await send(app, "/api/v1/nodes")).json["error"]
        answers.set()
        while (answer := await send(app, "/api/v1/nodes")).status != 200:
            await asyncio.sleep(0.01)
        assert answer.json == {"nodes": []}

    try:
        asyncio.run(asyncio.wait_for(go(), 60))
    finally:
        answers.set()


def test_a_body_that_does_not_arrive_is_not_waited_for(board: Board) -> None:
    app = make_app(board)

    async def go(path: str, kind: str) -> int:
        status, over = 0, asyncio.Event()
        sent = iter([{"type": "http.request", "body": b"--x\r\n", "more_body": True}])

        async def receive() -> Any:
            for message in sent:
                return message
            await over.wait()

        async def reply(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        headers = {"host": "127.0.0.1", "content-type": kind, "content-length": "100"}
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "scheme": "http"}
        scope |= {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
        await asyncio.wait_for(app(scope, receive, reply), 60)
        return status

    assert asyncio.run(go("/api/v1/jobs", "application/json")) == 408
    assert asyncio.run(go("/api/v1/batches", "multipart/form-data; boundary=x")) == 408
    assert asyncio.run(go("/submit", "application/x-www-form-urlencoded")) == 408


class Quick(LimitedProtocol):
    headers_s = 0.3
    reading_s = 0.3


@contextmanager
def serving(app: Any) -> Iterator[tuple[str, int]]:
    """The application behind a socket, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(app, http=Quick, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield bound.getsockname()
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost:"],
    ids=["nothing", "half a request", "half of a second one"],
)
def test_a_connection_without_a_request_is_closed(sent: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with serving(app) as address, socket.create_connection(address, 60) as client:
        client.sendall(sent)
        received = b""
        try:
            while more := client.recv(1000):
                received += more
        except ConnectionResetError:
            pass
        assert received.count(b"204") == sent.count(b"\r\n\r\n")


def test_an_answer_that_is_not_read_is_given_up() -> None:
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        ended.set()

    with serving(app) as address, socket.create_connection(address, 60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ended.wait(60), "the application still waits for its client"
