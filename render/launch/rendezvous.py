"""The rendezvous of a group: torchrun's handler for one node and for several.

torchrun's own rendezvous opens an unauthenticated store on all interfaces, and its elastic form keeps a
pickle in that store, which every node loads (torch.distributed.elastic.rendezvous.dynamic_rendezvous). Here
the store listens on the loopback only, nodes join over mutual TLS (see `store_relay`), and all messages are
lines of JSON:

    {"kind": "join", "node": 1}   ->   {"rank": 1, "nodes": 2}   when the group starts
                                  or   {"refused": "one sentence"}

The host, node 0, decides in memory who belongs to the group (see `membership`). A node that dies while it
waits closes its connection and is forgotten. Once the group has started nobody joins it any more.
"""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from render.launch.membership import JoinRefused, Membership
from render.launch.rendezvous_config import BACKEND, LOOPBACK, Rendezvous
from render.launch.store_relay import (
    RETRY_S,
    RelayLoop,
    RelayServer,
    StoreForwarder,
    WrongSecret,
    connect,
    end,
    line,
    parse_line,
)

if TYPE_CHECKING:
    from render.launch.group_tls import GroupTls

_AFTER_HOST_S = 5.0
"""A node that joins waits so much longer than the host."""
_DRAIN_S = 2.0
"""The host, done, waits so long until the others have closed their connections to the store."""


class NotAdmitted(RendezvousStateError):
    """The host does not let this node join; the text is one sentence for a person."""


class Misconfigured(RendezvousStateError):
    """This node's address or secret is wrong; the text is one sentence for a person."""


class GroupRendezvous(RendezvousHandler):
    """One rendezvous, for one start of the ranks: torchrun's agent takes the store and this node's rank."""

    def __init__(self, config: Rendezvous, run_id: str, folder: Path | None = None) -> None:
        """Opens nothing. `folder` is private; see `GroupTls`."""
        self._config, self._run_id, self._folder = config, run_id, folder
        self._closed = False
        self._loop: RelayLoop | None = None
        self._relay: RelayServer | None = None
        # The store's server lives as long as this.
        self._store: TCPStore | None = None

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._run_id

    @property
    def use_agent_store(self) -> bool:
        """The ranks use this store too, through MASTER_ADDR and MASTER_PORT: always the loopback."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for the other nodes; raises `RendezvousError`."""
        if self._closed:
            raise RendezvousClosedError("a group starts its ranks once")
        self._closed = True
        config = self._config
        if config.nodes == 1:
            self._store = _serve_store(config.join_s)
            rank, nodes = 0, 1
        elif config.place == 0:
            rank, nodes = self._host()
        else:
            rank, nodes = self._join()
        assert self._store is not None
        info = RendezvousStoreInfo(LOOPBACK, self._store.port)
        return RendezvousInfo(PrefixStore(self._run_id, self._store), rank, nodes, info)

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """Never any: torchrun would restart the group for them."""
        return 0

    def shutdown(self) -> bool:
        """Close the relay; on the host after the other nodes have left the store."""
        if self._loop is not None:
            # Stop in this order: a reply of the store may still be on its way to another node.
            if self._relay is not None:
                self._loop.run(self._relay.drain(_DRAIN_S))
            self._loop.close()
            self._loop = None
        return True

    def _tls(self) -> GroupTls:
        # Takes a moment to import, and a group of one node does without.
        from render.launch.group_tls import GroupTls

        return GroupTls(self._config.secret, self._folder)

    def _host(self) -> tuple[int, int]:
        config = self._config
        listening = _listen(config.host, config.port)
        self._store = _serve_store(config.join_s)
        gathering = _Gathering(config)
        tls = self._tls()
        self._relay = RelayServer(listening, tls.server, self._store.port, gathering.on_join)
        self._loop = RelayLoop()
        self._loop.start(self._relay.serve())
        return self._loop.run(gathering.complete())

    def _join(self) -> tuple[int, int]:
        config = self._config
        tls = self._tls()
        self._loop = RelayLoop()
        rank, nodes = self._loop.run(_join(config, tls))
        forwarder = StoreForwarder(config.host, config.port, tls.client)
        self._loop.start(forwarder.serve())
        self._store = TCPStore(
            LOOPBACK, forwarder.port, is_master=False, timeout=timedelta(seconds=config.join_s)
        )
        return rank, nodes


def register(config: Rendezvous, folder: Path) -> None:
    """Make this rendezvous known to torchrun in this process.

    Not by an entry point of `torchrun.handlers`: the launcher runs torchrun in its own process, and hands
    the secret over without a command line or an environment variable.
    """
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        return GroupRendezvous(config, parameters.run_id, folder)

    rendezvous_handler_registry.register(BACKEND, create)


class _Gathering:
    """The host's view of a group that forms: who waits on which connection."""

    def __init__(self, config: Rendezvous) -> None:
        self._config = config
        self._membership = Membership(config.fewest, config.nodes, config.last_call_s)
        self._waiting: dict[int, asyncio.StreamWriter] = {}
        self._changed = asyncio.Event()

    async def complete(self) -> tuple[int, int]:
        """(rank, nodes) of the host, once the group has started."""
        loop = asyncio.get_running_loop()
        self._membership.join(0, loop.time())
        try:
            async with asyncio.timeout(self._config.join_s):
                while (due := self._membership.due_in(loop.time())) != 0.0:
                    await _within(self._changed.wait(), due)
                    self._changed.clear()
        except TimeoutError:
            raise RendezvousTimeoutError(
                f"{self._membership.missing} of the group did not join in {self._config.join_s:g} s"
            ) from None
        members = self._membership.start()
        for rank, node in enumerate(members):
            if node in self._waiting:
                self._waiting[node].write(line({"rank": rank, "nodes": len(members)}))
        return members.index(0), len(members)

    async def on_join(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Hold a node's connection until it closes it."""
        node = request.get("node")
        try:
            if type(node) is not int:
                raise JoinRefused(f"node: {node!r} is not a whole number")
            self._membership.join(node, asyncio.get_running_loop().time())
        except JoinRefused as exc:
            writer.write(line({"refused": str(exc)}))
            await writer.drain()
            return
        _keep_alive(writer)
        self._waiting[node] = writer
        self._changed.set()
        try:
            # Nothing more comes on this connection but its end.
            await reader.read(1)
        finally:
            self._membership.leave(node)
            del self._waiting[node]
            self._changed.set()


async def _join(config: Rendezvous, tls: GroupTls) -> tuple[int, int]:
    """(rank, nodes) of this node, once the host has started the group."""
    reason = "it does not answer"
    try:
        # Longer than the host, which names the nodes that are missing: one that has left would be named, too.
        async with asyncio.timeout(config.join_s + _AFTER_HOST_S):
            while True:
                try:
                    return await _ask_to_join(config, tls)
                except OSError as exc:
                    # The host is not there yet, or has begun anew.
                    reason = str(exc) or type(exc).__name__
                await asyncio.sleep(RETRY_S)
    except WrongSecret as exc:
        raise Misconfigured(str(exc)) from exc
    except TimeoutError:
        where = f"{config.host}:{config.port}"
        raise RendezvousTimeoutError(
            f"{where} did not start the group in {config.join_s:g} s ({reason})"
        ) from None


async def _ask_to_join(config: Rendezvous, tls: GroupTls) -> tuple[int, int]:
    reader, writer = await connect(config.host, config.port, tls.client)
    try:
        _keep_alive(writer)
        writer.write(line({"kind": "join", "node": config.place}))
        answer = parse_line(await reader.readline())
    except ValueError as exc:
        raise ConnectionResetError("the host has closed the connection") from exc
    finally:
        await end(writer)
    if "refused" in answer:
        raise NotAdmitted(str(answer["refused"]))
    return int(answer["rank"]), int(answer["nodes"])


async def _within(work: Any, seconds: float | None) -> None:
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        return


def _serve_store(timeout_s: float) -> TCPStore:
    """A store whose server listens on the loopback of this machine alone."""
    listening = socket.create_server((LOOPBACK, 0), backlog=socket.SOMAXCONN)
    port = listening.getsockname()[1]
    return TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        # The server closes it.
        master_listen_fd=listening.detach(),
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket at one address of this machine, and no other."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=socket.SOMAXCONN)
    except OSError as exc:
        raise Misconfigured(f"this node cannot listen on {host}:{port}, the group's address ({exc})") from exc


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Notice within 20 s that the other machine has vanished: nothing else is sent on this connection."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
