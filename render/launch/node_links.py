"""The links between the servers of a group's nodes (`epoch_server`), and which of them are silent."""

from __future__ import annotations

import contextlib
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from render.launch.epoch_peers import Message, Peers
from render.launch.group_directory import uplink_path
from render.launch.line_socket import LineSocket

ALIVE_S = 0.25
"""Between two signs of life on a link."""
SILENCE_S = 2.0
"""A node that gives no sign of life for so long is lost to the first one, and so is the first one to it."""
_FIRST = 0
"""What the node at the other end of a link to the first node is called, whatever its number."""


@dataclass
class NodeLinks:
    """On the first node those that others have to it, which are peers; on another node the one to the first.

    `take` is called with each message of the first node, `lost` with the node of a link that has ended or
    is silent; 0 is the first one.
    """

    directory: Path
    selector: selectors.BaseSelector
    peers: Peers
    take: Callable[[Message], None]
    lost: Callable[[int], None]
    uplink: LineSocket | None = None
    """On another node than the first, as long as it reaches that."""
    _last_seen: dict[int, float] = field(default_factory=dict)
    """When each node at the other end of a link has sent something; monotonic."""
    _alive_at: float = 0.0

    def link(self, introduction: Message, patience_s: float) -> None:
        """Link to the first node, which gives its first sign of life within this time. Raises `OSError`."""
        self.uplink = LineSocket.connect(uplink_path(self.directory))
        self.uplink.send(introduction)
        self._last_seen[_FIRST] = time.monotonic() + patience_s
        self.selector.register(self.uplink, selectors.EVENT_READ, self._read)

    def seen(self, node: int) -> None:
        """A node has sent something."""
        self._last_seen[node] = time.monotonic()

    def send_up(self, message: Message) -> None:
        """Send a message to the first node, if there is a link."""
        if self.uplink is not None:
            try:
                self.uplink.send(message)
            except OSError:
                self.lost(_FIRST)

    def forget(self, node: int) -> None:
        """Close the links of a node that is lost."""
        del self._last_seen[node]
        if self.uplink is None:
            self.peers.close_node(node)
        else:
            self._close_uplink(self.uplink)

    def close(self) -> None:
        """Close all links."""
        self.peers.close_nodes()
        if self.uplink is not None:
            self._close_uplink(self.uplink)
        self._last_seen.clear()

    def tick(self) -> list[int]:
        """Give signs of life; the nodes that give none themselves."""
        moment = time.monotonic()
        if moment >= self._alive_at:
            self._alive_at = moment + ALIVE_S
            self._say_alive()
        return [node for node, seen in self._last_seen.items() if moment - seen > SILENCE_S]

    def close_in_child(self) -> None:
        """In a forked process: the socket is the server's."""
        if self.uplink is not None:
            self.uplink.close()

    def _say_alive(self) -> None:
        if self.uplink is None:
            self.peers.tell_nodes({"alive": True})
        else:
            # A link that takes nothing is found lost by its silence.
            with contextlib.suppress(OSError):
                self.uplink.send({"alive": True})

    def _read(self) -> None:
        if self.uplink is None:
            return
        try:
            messages = self.uplink.receive()
        except OSError:
            self.lost(_FIRST)
            return
        self.seen(_FIRST)
        for message in messages:
            self.take(message)

    def _close_uplink(self, uplink: LineSocket) -> None:
        self.selector.unregister(uplink)
        uplink.close()
        self.uplink = None
