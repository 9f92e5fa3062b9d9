"""A proxy before an HTTP server that does to its users what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass(kw_only=True)
class Fault:
    """What happens to the next `times` requests with a method and a part of the path."""

    kind: str
    """`status` answers so, `reset` cuts before the server receives it, `lost answer` after it has done it,
    `truncated` in the middle of the answer's body, `hang` never answers."""
    times: int = 1
    method: str = "PUT"
    path: str = ""
    status: str = "500 Internal Server Error"
    code: str = "InternalError"

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and self.path in path


@dataclass
class _Message:
    """A request or an answer: its first line and headers, and its body as it came."""

    head: list[bytes]
    body: bytes = b""
    headers: dict[bytes, bytes] = field(init=False)

    def __post_init__(self) -> None:
        pairs = (line.split(b":", 1) for line in self.head[1:])
        self.headers = {name.strip().lower(): value.strip() for name, value in pairs}

    def raw(self, *without: bytes) -> bytes:
        lines = [line for line in self.head if not line.lower().startswith(without)]
        return b"\r\n".join([*lines, b"", b""]) + self.body


class FaultProxy:
    """Passes everything on, but for the faults that are planned; notes every request."""

    def __init__(self, upstream: str, host: str = "127.0.0.1") -> None:
        parts = urlsplit(upstream)
        self._upstream = parts.hostname or "", parts.port or 80
        self._host = host
        self.requests: list[tuple[str, str]] = []
        """(method, path) of all, in the order in which they came."""
        self.faults: list[Fault] = []
        self.bytes_per_s = float("inf")
        self.delay_s = 0.0
        """The link's delay there and back, which a connection, a request and its Expect each wait for."""
        self.unheeded = b"expect:"
        """A header that the server never sees, besides Expect, which is answered here."""
        self.url = ""
        self._is_cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), daemon=True, name="fault proxy"
        )
        self._ready = threading.Event()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30), "the fault proxy did not start"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)

    def cut(self) -> None:
        """From now on every connection breaks, those that are open too."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(self._abort_all)

    def mend(self) -> None:
        self._is_cut = False

    def seen(self, method: str, path: str) -> int:
        """How many such requests have come."""
        return sum(each[0] == method and path in each[1] for each in list(self.requests))

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, self._host, 0)
        self.url = f"http://{self._host}:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._over.wait()
        server.close()
        self._abort_all()
        # Transports close in the loop's next turn.
        await asyncio.sleep(0.01)

    def _abort_all(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        broken = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ValueError)
        with contextlib.suppress(*broken):
            await asyncio.sleep(self.delay_s)
            server = await asyncio.open_connection(*self._upstream)
            self._open.add(server[1])
            while await self._pass_on(reader, writer, *server):
                pass
            server[1].close()
            self._open.discard(server[1])
        writer.transport.abort()
        self._open.discard(writer)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; False when the connection is over."""
        head = await _read_head(reader)
        method, path = head.head[0].decode().split(" ")[:2]
        self.requests.append((method, unquote(path)))
        if self._is_cut:
            return False
        if head.headers.get(b"expect"):
            await asyncio.sleep(self.delay_s)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head.body = await _read_body(reader, head.headers)
        fault = self._next_fault(method, unquote(path))
        kind = fault.kind if fault else ""
        if kind == "status" and fault:
            writer.write(_error(fault))
            await writer.drain()
            return True
        if kind == "reset":
            return False
        if kind == "hang":
            await self._over.wait()
            return False
        await asyncio.sleep(self.delay_s + len(head.body) / self.bytes_per_s)
        server_writer.write(head.raw(b"expect:", self.unheeded))
        answer = await _read_head(server_reader)
        no_body = method == "HEAD" or answer.head[0].split(b" ")[1] in (b"204", b"304")
        answer.body = b"" if no_body else await _read_body(server_reader, answer.headers)
        if kind == "lost answer" or self._is_cut:
            return False
        await asyncio.sleep(len(answer.body) / self.bytes_per_s)
        if kind == "truncated":
            answer.body = answer.body[: len(answer.body) // 2]
        writer.write(answer.raw())
        await writer.drain()
        return kind != "truncated" and answer.headers.get(b"connection", b"").lower() != b"close"

    def _next_fault(self, method: str, path: str) -> Fault | None:
        fault = next((each for each in self.faults if each.fits(method, path)), None)
        if fault is not None:
            fault.times -= 1
        return fault


async def _read_head(reader: asyncio.StreamReader) -> _Message:
    return _Message((await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n"))


async def _read_body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> bytes:
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        parts = []
        while True:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            parts += [line, await reader.readexactly(size + 2)]
            if size == 0:
                return b"".join(parts)
    return await reader.readexactly(int(headers.get(b"content-length", b"0")))


def _error(fault: Fault) -> bytes:
    body = f"<Error><Code>{fault.code}</Code><Message>planned</Message></Error>".encode()
    head = f"HTTP/1.1 {fault.status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def fault_proxy(upstream: str, host: str = "127.0.0.1") -> Iterator[FaultProxy]:
    """A proxy for as long as the block lasts."""
    proxy = FaultProxy(upstream, host)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
