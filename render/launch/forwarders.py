"""The ends of a group's other nodes: sockets that lead to the store and to the epochs of its first node.

`store_relay` shows how they belong together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from pathlib import Path

from render.launch.store_relay import RETRY_S, Streams, WrongSecret, connect, end, line, pipe

STORE_S = 30.0
"""A forwarder tries for so long to reach the host for one connection."""
_logger = logging.getLogger(__name__)


class Forwarder:
    """The end of another node: a socket that leads to the host's store, or to its epochs."""

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext | None, listening: socket.socket, kind: str
    ) -> None:
        """`kind` is what the connections are for: "store" or "epochs". `listening` belongs to this object."""
        self._host, self._port, self._context = host, port, context
        self._listening, self._kind = listening, kind
        self._listening.setblocking(False)
        self._tasks: set[asyncio.Task[None]] = set()

    def lead_to(self, host: str, port: int) -> None:
        """Lead new connections to another host."""
        self._host, self._port = host, port

    async def serve(self) -> None:
        """Forward connections until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                connection, _ = await loop.sock_accept(self._listening)
                task = asyncio.create_task(self._forward(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            self._listening.close()

    async def _forward(self, connection: socket.socket) -> None:
        local = await asyncio.open_connection(sock=connection)
        try:
            async with asyncio.timeout(STORE_S):
                host = await self._reach()
        except (OSError, TimeoutError, WrongSecret) as exc:
            _logger.error(
                "the group's %s at %s:%d cannot be reached: %s", self._kind, self._host, self._port, exc
            )
            await end(local[1])
            return
        with contextlib.suppress(OSError):
            await pipe(local, host)

    async def _reach(self) -> Streams:
        while True:
            try:
                if self._context is None:
                    return await asyncio.open_connection(self._host, self._port)
                streams = await connect(self._host, self._port, self._context)
            except OSError:
                await asyncio.sleep(RETRY_S)
                continue
            streams[1].write(line({"kind": self._kind}))
            return streams


class StoreForwarder(Forwarder):
    """A port on the loopback that leads to the host's store."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = listening.getsockname()[1]
        super().__init__(host, port, context, listening, "store")

    def lead_to_own(self, port: int) -> None:
        """Lead new connections to a store on this machine's own loopback."""
        self._host, self._port, self._context = "127.0.0.1", port, None


class EpochForwarder(Forwarder):
    """A unix socket at `path` that leads to the host's epochs."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, path: Path) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        super().__init__(host, port, context, listening, "epochs")
