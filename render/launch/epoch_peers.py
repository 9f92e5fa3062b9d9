"""Who is connected to the server of a node's epochs (`epoch_server`): ranks of this node, and other nodes."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from render.launch.group_directory import epoch_socket_path
from render.launch.line_socket import LineSocket

Message = dict[str, Any]


@dataclass(eq=False)
class Peer:
    """The other end of a connection: a rank of this node, or the server of another node."""

    lines: LineSocket
    rank: int = -1
    pid: int = 0
    node: int = -1


@dataclass
class Peers:
    """The connections to a unix socket of the group's directory; in the thread of the fork server.

    `take` is called with each message of a peer, `lost` with the number of a node whose connection has ended.
    """

    listening: socket.socket
    selector: selectors.BaseSelector
    take: Callable[[Peer, Message], None]
    lost: Callable[[int], None]
    _there: list[Peer] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        directory: Path,
        selector: selectors.BaseSelector,
        take: Callable[[Peer, Message], None],
        lost: Callable[[int], None],
    ) -> Peers:
        """Listen in a group's directory."""
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(epoch_socket_path(directory)))
        listening.listen()
        peers = cls(listening, selector, take, lost)
        selector.register(listening, selectors.EVENT_READ, peers._accept)
        return peers

    def tell_ranks(self, message: Message, ranks: Collection[int], lives: Callable[[Peer], bool]) -> None:
        """Send a message to ranks of this node."""
        for peer in self._there:
            if peer.rank in ranks and lives(peer):
                # A rank that has ended is reaped soon.
                with contextlib.suppress(OSError):
                    peer.lines.send(message)

    def tell_nodes(self, message: Message, node: int | None = None) -> None:
        """Send a message to another node, or to all that are connected."""
        for peer in self._there:
            if peer.node == node or (node is None and peer.node > 0):
                # One that takes nothing is found lost by its silence.
                with contextlib.suppress(OSError):
                    peer.lines.send(message)

    def close_node(self, node: int) -> None:
        """Close the connections of a node."""
        self._close([peer for peer in self._there if peer.node == node])

    def close_nodes(self) -> None:
        """Close those of all other nodes."""
        self._close([peer for peer in self._there if peer.node > 0])

    def close_ranks(self) -> None:
        """Close those of this node's ranks."""
        self._close([peer for peer in self._there if peer.rank >= 0])

    def close_all(self) -> None:
        """Close all, as when this node ends."""
        self._close(list(self._there))

    def close_in_child(self) -> None:
        """In a forked process: the sockets are the server's."""
        self.listening.close()
        for each in self._there:
            each.lines.close()

    def _close(self, peers: Collection[Peer]) -> None:
        for peer in peers:
            self._there.remove(peer)
            self.selector.unregister(peer.lines)
            peer.lines.close()

    def _accept(self) -> None:
        connection, _ = self.listening.accept()
        peer = Peer(LineSocket(connection))
        self._there.append(peer)
        self.selector.register(peer.lines, selectors.EVENT_READ, partial(self._read, peer))

    def _read(self, peer: Peer) -> None:
        if peer not in self._there:
            # Closed since the selector has found it readable.
            return
        try:
            messages = peer.lines.receive()
        except OSError:
            self.lost(peer.node) if peer.node > 0 else self._close([peer])
            return
        for message in messages:
            self.take(peer, message)
