"""Requests to the board's application in this process, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tests.support.board import Answer


def ask(
    app: Any,
    path: str,
    method: str = "GET",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    client: str = "127.0.0.1",
) -> Answer:
    """One request, and its whole answer. Event streams do not end."""
    return asyncio.run(send(app, path, method, body, headers, client))


async def send(
    app: Any,
    path: str,
    method: str = "GET",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    client: str = "127.0.0.1",
) -> Answer:
    """The same within a loop."""
    path, _, query = path.partition("?")
    given = {"host": "127.0.0.1"} | dict(headers or {})
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": (client, 5),
        "server": ("127.0.0.1", 80),
    }
    answered, start, parts = asyncio.Event(), {}, []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop()
        await answered.wait()
        return {"type": "http.disconnect"}

    async def reply(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            answered.set()

    await app(scope, receive, reply)
    known = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], known, b"".join(parts))
