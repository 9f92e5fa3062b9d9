"""How a group forms: the first node waits for the others on the connections by which they ask to join.

Who belongs to the group is decided in `membership`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

from render.launch.membership import JoinRefused, Membership
from render.launch.rendezvous_config import Rendezvous
from render.launch.store_relay import line


class Gathering:
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
            if request.get("epochs") is not True:
                raise JoinRefused(f"node {node} runs an older version of Chorale; run the same on all nodes")
            self._membership.join(node, asyncio.get_running_loop().time())
        except JoinRefused as exc:
            writer.write(line({"refused": str(exc)}))
            await writer.drain()
            return
        keep_alive(writer)
        self._waiting[node] = writer
        self._changed.set()
        try:
            # Nothing more comes on this connection but its end.
            await reader.read(1)
        finally:
            self._membership.leave(node)
            del self._waiting[node]
            self._changed.set()


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Notice within 20 s that the other machine has vanished: nothing else is sent on this connection."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _within(work: Any, seconds: float | None) -> None:
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        return
