"""Time limits of requests: a client that sends or reads slowly, and a database or store that does not answer,
cost the board a thread or a connection for a while, never the board itself.

Two layers. `answer_in_time` is around the application: bodies have to arrive, and answers to begin. The
protocol is around the connection: headers have to arrive, and what was sent has to be read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)
Refuse = Callable[[int, str], Awaitable[None]]
"""Answers with a status and a sentence."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds. An answer to an uploaded batch may take longer, it has up to 100,000 rows; so may one that
    waits for images, and the body of a large file."""

    body_s: float = 120.0
    slow_body_s: float = 3600.0
    answer_s: float = 60.0
    slow_answer_s: float = 900.0
    most_unanswered: int = 24
    """Calls that were given up and still run, a thread of 40 each; requests are refused beyond that."""


@dataclass
class Deadlines:
    """The calls of one board."""

    limits: Limits = field(default_factory=Limits)
    _unanswered: set[asyncio.Task[None]] = field(default_factory=set)

    async def answer_in_time(
        self,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        refuse: Refuse,
        slow: bool,
        *,
        slow_body: bool = False,
    ) -> None:
        """Call the application; 503 by `refuse` if it does not begin to answer in time.

        What runs in a thread cannot be stopped: it is left alone, and its answer is dropped. Raises what the
        application raises. A body that does not arrive in time raises `HTTPException` 408 where it is read.
        """
        if len(self._unanswered) >= self.limits.most_unanswered:
            await refuse(503, "the board waits for its database or store; try again in a minute")
            return
        limit = self.limits.slow_answer_s if slow else self.limits.answer_s
        body_s = self.limits.slow_body_s if slow_body else self.limits.body_s
        call = _Call(receive, send, body_s, has_body=_has_body(scope))
        task = asyncio.ensure_future(_run(app, scope, call))
        try:
            while not task.done() and (left := call.seconds_left(limit)) > 0:
                await asyncio.wait({task}, timeout=left if left < float("inf") else None)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            task.result()
            return
        call.given_up = True
        self._unanswered.add(task)
        task.add_done_callback(self._ended)
        logger.warning("no answer to %s %s within %g s", scope["method"], scope["path"], limit)
        await refuse(
            503,
            f"no answer within {limit:g} s: the database or the store is slow. What was asked for may still "
            "be done; look before you send it again",
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._unanswered.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a request that was given up ended with: %s", error)


async def _run(app: ASGIApp, scope: Scope, call: _Call) -> None:
    await app(scope, call.receive, call.send)


@dataclass
class _Call:
    """One request: what was received of it, and whether its answer has begun."""

    _receive: Receive
    _send: Send
    _body_s: float
    has_body: bool
    given_up: bool = False
    _begun: float = field(default_factory=time.monotonic)
    _received: float | None = None
    _answering: bool = False

    def seconds_left(self, limit: float) -> float:
        """Until the answer has to begin; infinite once it has."""
        if self._answering:
            return float("inf")
        if self.has_body and self._received is None:
            return self._begun + self._body_s + limit - time.monotonic()
        return (self._received or self._begun) + limit - time.monotonic()

    async def receive(self) -> Message:
        if not self.has_body or self._received is not None:
            return await self._receive()
        try:
            left = self._begun + self._body_s - time.monotonic()
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except TimeoutError as exc:
            self._received = time.monotonic()
            raise HTTPException(408, f"the request did not arrive within {self._body_s:g} s") from exc
        if not message.get("more_body"):
            self._received = time.monotonic()
        return message

    async def send(self, message: Message) -> None:
        if self.given_up:
            return
        self._answering = True
        await self._send(message)


def _has_body(scope: Scope) -> bool:
    names = {name.lower() for name, _ in scope["headers"]}
    return b"transfer-encoding" in names or b"content-length" in names


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which has no limits for slow clients, with two more."""

    headers_s = 20.0
    """Seconds until a connection's next request has to be there, headers and all."""
    reading_s = 60.0
    """Seconds for which a client may leave an answer unread."""
    _awaiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def on_response_complete(self) -> None:
        # A request that was sent ahead may begin in the call.
        self._await_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.reading_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._awaiting, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self._awaiting is not None:
            self._awaiting.cancel()
        self._awaiting = self.loop.call_later(self.headers_s, self._close_unless_asked, self.cycle)

    def _close_unless_asked(self, last: object) -> None:
        if self.cycle is last and not self.transport.is_closing():
            self.transport.abort()
