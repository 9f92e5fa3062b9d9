"""The rendezvous of a group: torchrun's handler for one node and for several.

torchrun's own rendezvous opens an unauthenticated store on all interfaces, and its elastic form keeps a
pickle in that store, which every node loads (torch.distributed.elastic.rendezvous.dynamic_rendezvous). Here
the store listens on the loopback only, nodes join over mutual TLS (see `store_relay`), and all messages are
lines of JSON:

    {"kind": "join", "node": 1, "epochs": true}   ->   {"rank": 1, "nodes": 2}   when the group starts
                                                  or   {"refused": "one sentence"}

The host, node 0, decides in memory who belongs to the group (see `membership`). A node that dies while it
waits closes its connection and is forgotten. Once the group has started nobody joins it any more; what
becomes of its ranks then is decided by the epochs (see `epoch_coordinator`). Whoever has started it may let
ranks of other nodes be added: then the relay is opened while they render, and to torchrun those ranks are a
group of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import _TERMINAL_STATE_SYNC_ID
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.utils.store import _barrier_nonblocking

from render.launch.forwarders import EpochForwarder, StoreForwarder
from render.launch.gathering import Gathering, keep_alive
from render.launch.group_directory import epoch_socket_path, move_path, moved_path, open_path, uplink_path
from render.launch.rendezvous_config import BACKEND, LOOPBACK, Move, Rendezvous
from render.launch.store_relay import (
    RETRY_S,
    RelayLoop,
    RelayServer,
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
_LOOK_S = 0.05
"""Between two looks whether there is another first node."""
_logger = logging.getLogger(__name__)
_DRAIN_S = 2.0
"""The host, done, waits so long until the others have closed their connections to the store."""


class NotAdmitted(RendezvousStateError):
    """The host does not let this node join; the text is one sentence for a person."""


class Misconfigured(RendezvousStateError):
    """This node's address or secret is wrong; the text is one sentence for a person."""


class GroupRendezvous(RendezvousHandler):
    """One rendezvous, for one start of the ranks: torchrun's agent takes the store and this node's rank."""

    def __init__(self, config: Rendezvous, run_id: str, folder: Path | None = None) -> None:
        """Opens nothing. `folder` is private, the directory of the group; without it there are no epochs."""
        self._config, self._run_id, self._folder = config, run_id, folder
        self._closed = False
        self._loop: RelayLoop | None = None
        self._relay: RelayServer | None = None
        # The store's server lives as long as this.
        self._store: TCPStore | None = None
        self._nodes = 1
        self._forwarders: tuple[StoreForwarder, EpochForwarder] | None = None
        # That of a group whose first node is lost.
        self._next_store: TCPStore | None = None

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
        if config.joins:
            return self._join_running()
        if config.nodes == 1:
            self._store = _serve_store(config.join_s)
            rank, nodes = 0, 1
            if config.opens and self._folder is not None:
                watch = partial(self._watch_open, self._folder)
                threading.Thread(target=watch, name="open", daemon=True).start()
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
        gathering = Gathering(config)
        tls = self._tls()
        self._relay = RelayServer(
            listening,
            tls.server,
            self._store.port,
            gathering.on_join,
            epochs=None if self._folder is None else epoch_socket_path(self._folder),
            on_left=lambda: threading.Thread(target=self._stand_in, daemon=True).start(),
        )
        self._loop = RelayLoop()
        self._loop.start(self._relay.serve())
        rank, self._nodes = self._loop.run(gathering.complete())
        return rank, self._nodes

    def _watch_open(self, folder: Path) -> None:
        """Let ranks of other nodes in when whoever has started the group says so."""
        while not open_path(folder).exists():
            time.sleep(_LOOK_S)
        self._config = Rendezvous.take(open_path(folder))
        try:
            self._serve_relay(self._config, folder)
        except Misconfigured as exc:
            # Nobody joins then; the ranks that are there go on.
            _logger.error("%s", exc)

    def _serve_relay(self, config: Rendezvous, folder: Path) -> None:
        assert self._store is not None
        listening = _listen(config.host, config.port)
        self._relay = RelayServer(
            listening, self._tls().server, self._store.port, _refuse, epochs=epoch_socket_path(folder)
        )
        self._loop = RelayLoop()
        self._loop.start(self._relay.serve())

    def _watch_moves(self, folder: Path, tls: GroupTls) -> None:
        """Switch to another first node whenever whoever has started the group says so."""
        while True:
            if move_path(folder).exists():
                self._switch(Move.read(move_path(folder)), folder, tls)
                move_path(folder).rename(moved_path(folder))
            time.sleep(_LOOK_S)

    def _switch(self, move: Move, folder: Path, tls: GroupTls) -> None:
        assert self._forwarders is not None and self._loop is not None
        store, epochs = self._forwarders
        if move.first != self._config.place:
            store.lead_to(move.host, move.port)
            epochs.lead_to(move.host, move.port)
            return
        listening = _listen(move.host, move.port)
        self._next_store = _serve_store(self._config.join_s)
        store.lead_to_own(self._next_store.port)
        self._relay = RelayServer(
            listening, tls.server, self._next_store.port, _refuse, epochs=epoch_socket_path(folder)
        )
        self._loop.start(self._relay.serve())

    def _stand_in(self) -> None:
        """Pass torchrun's last barrier for a node that has left: nobody has to wait for one that is lost. If
        it has passed by itself, this changes nothing."""
        assert self._store is not None
        # A client of its own: the other one may be waiting at the barrier.
        with contextlib.suppress(DistError):
            own = TCPStore(LOOPBACK, self._store.port, is_master=False, timeout=timedelta(seconds=_DRAIN_S))
            _barrier_nonblocking(PrefixStore(self._run_id, own), self._nodes, _TERMINAL_STATE_SYNC_ID)

    def _join_running(self) -> RendezvousInfo:
        """The ranks of this node are added to a group that renders. To torchrun they are alone."""
        config, self._loop = self._config, RelayLoop()
        self._store = _serve_store(config.join_s)
        forwarder = self._forward(self._tls(), self._loop)
        info = RendezvousStoreInfo(LOOPBACK, forwarder.port)
        return RendezvousInfo(PrefixStore(self._run_id, self._store), 0, 1, info)

    def _join(self) -> tuple[int, int]:
        config = self._config
        tls = self._tls()
        self._loop = RelayLoop()
        rank, nodes = self._loop.run(_join(config, tls))
        forwarder = self._forward(tls, self._loop)
        self._store = TCPStore(
            LOOPBACK, forwarder.port, is_master=False, timeout=timedelta(seconds=config.join_s)
        )
        return rank, nodes

    def _forward(self, tls: GroupTls, loop: RelayLoop) -> StoreForwarder:
        """Lead to the store and the epochs of the group's first node."""
        config = self._config
        forwarder = StoreForwarder(config.host, config.port, tls.client)
        loop.start(forwarder.serve())
        if self._folder is not None:
            epochs = EpochForwarder(config.host, config.port, tls.client, uplink_path(self._folder))
            loop.start(epochs.serve())
            self._forwarders = forwarder, epochs
        if config.moves and self._folder is not None:
            watch = partial(self._watch_moves, self._folder, tls)
            threading.Thread(target=watch, name="moves", daemon=True).start()
        return forwarder


def register(config: Rendezvous, folder: Path) -> None:
    """Make this rendezvous known to torchrun in this process.

    Not by an entry point of `torchrun.handlers`: the launcher runs torchrun in its own process, and hands
    the secret over without a command line or an environment variable.
    """
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        return GroupRendezvous(config, parameters.run_id, folder)

    rendezvous_handler_registry.register(BACKEND, create)


async def _refuse(request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(line({"refused": "the group has started"}))
    await writer.drain()


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
        keep_alive(writer)
        writer.write(line({"kind": "join", "node": config.place, "epochs": True}))
        answer = parse_line(await reader.readline())
    except ValueError as exc:
        raise ConnectionResetError("the host has closed the connection") from exc
    finally:
        await end(writer)
    if "refused" in answer:
        raise NotAdmitted(str(answer["refused"]))
    return int(answer["rank"]), int(answer["nodes"])


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
