"""Who the server of a node's epochs (`epoch_server`) deals with: the fork server, ranks, and other nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from render.launch.line_socket import LineSocket


class Ranks(Protocol):
    """What the fork server does with the ranks of its node."""

    def replace(self, rank: int) -> None:
        """Fork the successor of a rank that has ended."""
        ...

    def release(self, rank: int) -> None:
        """Let a rank that has ended be, and its proxy end as it did."""
        ...

    def end_all(self, code: int) -> None:
        """End the ranks that are still there, and their proxies with this code."""
        ...


@dataclass(eq=False)
class Peer:
    """The other end of a connection: a rank of this node, or the server of another node."""

    lines: LineSocket
    rank: int = -1
    pid: int = 0
    node: int = -1
