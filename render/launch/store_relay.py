"""How the nodes of a group reach the store and the epochs of its first node, and nobody else does.

torch's TCPStore has no authentication, so it listens on the loopback of the first node, the host, alone:

    rank --- loopback --- StoreForwarder ===== mutual TLS ===== RelayServer --- loopback --- TCPStore
             (other nodes' launchers)                           (the host's launcher)

The epochs (see `epoch_server`) are a unix socket of the host's fork server, reached in the same way through
one in the directory of the other node's group.

The relay listens on the group's own address only. Bytes reach the store after a handshake that proves that
the peer holds the group's secret (see `group_tls`). A peer that cannot prove it is disconnected within
seconds, and the number of such connections is bounded. The first line of an accepted connection says what it
is for: to join the group (see `rendezvous`), to use the store, or to take part in the epochs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

HANDSHAKE_S = 5.0
"""A peer has so long to prove that it holds the secret and to say what it wants."""
HANDSHAKES = 256
"""Most connections that have not proved anything yet, in all ..."""
HANDSHAKES_PER_ADDRESS = 64
"""... and from one address, so that one stranger cannot keep the others out."""
RETRY_S = 0.1
"""Between two tries to reach the host."""
EPOCHS_S = 300.0
"""The process that ranks are forked from has so long to import what they need."""
_LINE = 2**16
_CLOSE_S = 1.0
_LOGGED = 20
"""So many refusals of a relay are logged: strangers shall not fill a disk."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
OnJoin = Callable[[dict[str, Any], asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Result = TypeVar("Result")
_logger = logging.getLogger(__name__)


class WrongSecret(Exception):
    """The peer does not hold the group's secret."""


class RelayLoop:
    """An event loop in a thread of this process; it ends with the process at the latest."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="store-relay", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the loop until `close`."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the loop and wait for it; signals interrupt the wait."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what still runs, and end the thread."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class RelayServer:
    """The host's end. `listening` is bound and listens; it belongs to the relay from now on."""

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        store_port: int,
        on_join: OnJoin,
        *,
        epochs: Path | None = None,
        on_left: Callable[[], None] = lambda: None,
        handshake_s: float = HANDSHAKE_S,
    ) -> None:
        """`epochs` is the socket of the host's epochs; `on_left` is called when a node does not use it any
        more."""
        listening.setblocking(False)
        self._epochs, self._on_left = epochs, on_left
        self._listening, self._context, self._store_port = listening, context, store_port
        self._on_join, self._handshake_s = on_join, handshake_s
        self._handshakes: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = 0

    async def serve(self) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, peer = await loop.sock_accept(self._listening)
                except OSError:
                    # Out of descriptors, or the peer has gone already.
                    await asyncio.sleep(RETRY_S)
                    continue
                self._admit(connection, peer[0])
        finally:
            self._listening.close()

    async def drain(self, seconds: float) -> None:
        """Wait until the peers have closed their connections, but not longer than so."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _admit(self, connection: socket.socket, peer: str) -> None:
        if self._handshakes[peer] >= HANDSHAKES_PER_ADDRESS or self._handshakes.total() >= HANDSHAKES:
            connection.close()
            return
        self._handshakes[peer] += 1
        task = asyncio.create_task(self._serve_one(connection, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_one(self, connection: socket.socket, peer: str) -> None:
        try:
            async with asyncio.timeout(self._handshake_s):
                reader, writer = await _accepted(connection, self._context)
                with _aborted_on_error(writer):
                    request = parse_line(await reader.readline())
        except (OSError, ValueError, TimeoutError) as exc:
            self._log_refusal(peer, exc)
            return
        finally:
            self._handshakes[peer] -= 1
            if not self._handshakes[peer]:
                del self._handshakes[peer]
        try:
            if request.get("kind") == "join":
                await self._on_join(request, reader, writer)
            elif request.get("kind") == "store":
                store = await asyncio.open_connection("127.0.0.1", self._store_port)
                await pipe((reader, writer), store)
            elif request.get("kind") == "epochs" and self._epochs is not None:
                with contextlib.suppress(OSError):
                    await pipe((reader, writer), await _reach_socket(self._epochs))
                self._on_left()
        except OSError as exc:
            _logger.warning("a connection from %s ended: %s", peer, exc)
        finally:
            await end(writer)

    def _log_refusal(self, peer: str, exc: Exception) -> None:
        self._refused += 1
        if self._refused <= _LOGGED:
            _logger.warning("refused a connection from %s: %s", peer, str(exc) or type(exc).__name__)
        if self._refused == _LOGGED:
            _logger.warning("further refusals are not logged")


async def _reach_socket(path: Path) -> Streams:
    """A connection to a unix socket of this machine, which is there as soon as the ranks are started. Raises
    `OSError`."""
    end = asyncio.get_running_loop().time() + EPOCHS_S
    while True:
        try:
            return await asyncio.open_unix_connection(str(path), limit=_LINE)
        except OSError:
            if asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(RETRY_S)


async def connect(host: str, port: int, context: ssl.SSLContext) -> Streams:
    """A connection to a relay that holds the secret; raises `WrongSecret` or `OSError`."""
    try:
        return await asyncio.open_connection(
            host, port, ssl=context, server_hostname="", ssl_handshake_timeout=HANDSHAKE_S, limit=_LINE
        )
    except ssl.SSLCertVerificationError as exc:
        raise WrongSecret(
            f"{host}:{port} does not hold the secret of this group; give all nodes the same secret"
        ) from exc


async def pipe(one: Streams, other: Streams) -> None:
    """Copy bytes both ways until either side ends, then close both."""
    ways = [asyncio.create_task(_copy(one[0], other[1])), asyncio.create_task(_copy(other[0], one[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        await asyncio.gather(end(one[1]), end(other[1]))


async def end(writer: asyncio.StreamWriter) -> None:
    """Close a connection once what was written has gone out, or after a second without it."""
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


def line(message: dict[str, Any]) -> bytes:
    """A message as one line of JSON."""
    return json.dumps(message).encode() + b"\n"


def parse_line(data: bytes) -> dict[str, Any]:
    """What `line` has made; raises `ValueError` for anything else."""
    if not data.endswith(b"\n"):
        raise ValueError("the connection ended before its first line did")
    try:
        message = json.loads(data)
    except RecursionError as exc:
        raise ValueError("the first line is nested too deeply") from exc
    if not isinstance(message, dict):
        raise ValueError("the first line is not a JSON object")
    return message


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_LINE):
        writer.write(data)
        await writer.drain()


async def _accepted(connection: socket.socket, context: ssl.SSLContext) -> Streams:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LINE)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


@contextlib.contextmanager
def _aborted_on_error(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    except BaseException:
        writer.transport.abort()
        raise


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    # Aborted transports close their sockets in the next rounds of the loop.
    for _ in range(3):
        await asyncio.sleep(0)
