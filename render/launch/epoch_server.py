"""Tells the ranks of a node which ranks render together: the fork server's part in `epochs.py`.

Each rank keeps one connection to a unix socket of the group's directory. Both sides send lines of JSON:

    {"rank": 0, "pid": 1234}                           the rank is there
    {"ready": true, "lost": false, "request": 1}       it waits for the next epoch
        ->  {"epoch": 2, "ranks": [0, 2]}              ... which begins
        ->  {"finished": 1}                            ... and need not: the request is finished
    {"apart": 1}, {"done": 1}                          see `epoch_coordinator.py`
        ->  {"broken": 1}                              a rank has died, and the epoch with it
        ->  {"joining": 1}                             a rank waits to join

The server of the first node has the group's coordinator. Those of other nodes have a link to it: a connection
to a unix socket of their launcher, which passes it on over mutual TLS (`store_relay.py`) to the first node's
launcher, and that to the same socket as the ranks of that node. A link begins with the node's number and its
ranks, {"node": 1, "ranks": [2, 3]}; both ends say {"alive": true} all the time.

A node that loses the first one tells whoever has started its group. Where that names another first node
(`rendezvous_config.Move`), the server of that one makes a coordinator of its own, the others link to it, and
all repeat what their ranks wait for. Else the ranks end.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from render.events import Event, FirstNodeLost, NodeLost
from render.launch.epoch_coordinator import EpochCoordinator, Message
from render.launch.epoch_peers import Peer, Ranks
from render.launch.event_channel import EventSender
from render.launch.group_directory import (
    epoch_socket_path,
    events_path,
    is_done,
    leave_path,
    moved_path,
    request_path,
    uplink_path,
)
from render.launch.line_socket import LineSocket
from render.launch.rank_environment import PEERS_LOST
from render.launch.rendezvous_config import MOVES, Move

ALIVE_S = 0.25
"""Between two signs of life on a link."""
SILENCE_S = 2.0
"""A node that gives no sign of life for so long is lost to the first one, and so is the first one to it."""
MEET_S = 300.0
"""Nodes that have joined the group have so long to import what their ranks need."""
MEET_AGAIN_S = 5.0
"""... and so long to link to another first node."""
MOVE_S = 20.0
"""Ranks that have lost the first node wait so long for another one."""
_LEAVE_S = 2.0
"""Ranks that are not to wait have so long to end by themselves."""
_CRASH_SIGNALS = {signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""A rank that was ended by one of these is replaced. Other ends have a cause that its successor would meet
too."""


@dataclass
class EpochServer:
    """The epochs of one group on one node; in the thread of the fork server."""

    directory: Path
    node: int
    nodes: int
    listening: socket.socket
    selector: selectors.BaseSelector
    ranks: Ranks
    own: range
    """The ranks of this node."""
    moves: bool
    """Whether another node may become the first one."""
    coordinator: EpochCoordinator | None = None
    """On the first node."""
    uplink: LineSocket | None = None
    """On another one, as long as it reaches the first."""
    _peers: list[Peer] = field(default_factory=list)
    _pids: dict[int, int] = field(default_factory=dict)
    """The process of each living rank."""
    _signals: dict[int, str] = field(default_factory=dict)
    """What ended the ranks that may be replaced."""
    _last_seen: dict[int, float] = field(default_factory=dict)
    """When each node at the other end of a link has sent something; monotonic."""
    _meet_by: float = field(default_factory=lambda: time.monotonic() + MEET_S)
    _alive_at: float = 0.0
    _end_at: float | None = None
    """When the ranks that are left are killed."""
    _epoch: Message | None = None
    """The newest epoch."""
    _waiting: dict[int, Message] = field(default_factory=dict)
    """What each rank that waits has said."""
    _undecided: dict[int, Message] = field(default_factory=dict)
    """Ranks that have ended, and of which it is not decided yet whether they are replaced."""
    _over: bool = False
    """The coordinator has ended the group."""

    @classmethod
    def open(
        cls,
        directory: Path,
        environment: Mapping[str, str],
        selector: selectors.BaseSelector,
        ranks: Ranks,
    ) -> EpochServer:
        """The server of the group in a directory; the environment is that of any of its ranks."""
        node, nodes = int(environment.get("GROUP_RANK", 0)), int(environment.get("GROUP_WORLD_SIZE", 1))
        first = int(environment["RANK"]) - int(environment["LOCAL_RANK"])
        own = range(first, first + int(environment["LOCAL_WORLD_SIZE"]))
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(epoch_socket_path(directory)))
        listening.listen()
        moves = environment.get(MOVES) == "1"
        server = cls(directory, node, nodes, listening, selector, ranks, own, moves)
        selector.register(listening, selectors.EVENT_READ, server._accept)
        if node == 0:
            server._lead(range(nodes))
        else:
            server._link(MEET_S)
        return server

    @property
    def tick_s(self) -> float | None:
        """Seconds between two calls of `tick`; None in a group of one node, which needs none."""
        return ALIVE_S if self.nodes > 1 else None

    def start(self, rank: int, pid: int) -> None:
        """A process of this rank was forked."""
        self._pids[rank] = pid
        self._report({"start": rank})

    def end(self, rank: int, code: int, *, replaceable: bool) -> None:
        """The rank has ended, with an exit code or by a signal (negative). It is replaced or released, now or
        soon; `replaceable` is False for one that torchrun has stopped itself."""
        del self._pids[rank]
        if leave_path(self.directory).exists():
            self._cut_off()
        crashed = replaceable and -code in _CRASH_SIGNALS
        self._signals[rank] = signal.Signals(-code).name if crashed else ""
        self._waiting.pop(rank, None)
        ended = {"end": rank, "died": code != 0, "crashed": crashed}
        if self.coordinator is not None or self.uplink is not None or self._awaits_move:
            self._undecided[rank] = ended
            self._report(ended)
        else:
            self.ranks.release(rank)

    def close_in_child(self) -> None:
        """In a forked rank: the sockets are the server's."""
        self.listening.close()
        for each in self._peers:
            each.lines.close()
        if self.uplink is not None:
            self.uplink.close()

    def tick(self) -> None:
        """Give signs of life, look who gives none, and end what has had its time."""
        moment = time.monotonic()
        if self._awaits_move and moved_path(self.directory).exists():
            self._move(Move.read(moved_path(self.directory)))
        if self._end_at is not None and moment > self._end_at:
            self._leave()
        if moment >= self._alive_at:
            self._alive_at = moment + ALIVE_S
            self._say_alive()
        for node in [
            node for node, moment_seen in self._last_seen.items() if moment - moment_seen > SILENCE_S
        ]:
            sys.stderr.write(f"node {node} of the group has not answered for {SILENCE_S:g} s\n")
            self._drop(node)
        if self.coordinator is not None:
            self.coordinator.tick()
            if self.coordinator.missing and moment > self._meet_by:
                self._miss(self.coordinator)

    # Connections

    def _accept(self) -> None:
        connection, _ = self.listening.accept()
        peer = Peer(LineSocket(connection))
        self._peers.append(peer)
        self.selector.register(peer.lines, selectors.EVENT_READ, partial(self._read, peer))

    def _read(self, peer: Peer) -> None:
        if peer not in self._peers:
            # Closed since the selector has found it readable.
            return
        try:
            messages = peer.lines.receive()
        except OSError:
            self._drop(peer.node) if peer.node > 0 else self._close(peer)
            return
        for message in messages:
            self._take(peer, message)

    def _close(self, peer: Peer) -> None:
        self._peers.remove(peer)
        self.selector.unregister(peer.lines)
        peer.lines.close()

    def _take(self, peer: Peer, message: Message) -> None:
        match message:
            case {"node": int(node), "ranks": list(ranks)} if self._may_link(node):
                assert self.coordinator is not None
                peer.node = node
                self._last_seen[node] = time.monotonic()
                self.coordinator.join(node, [rank for rank in ranks if type(rank) is int])
            case {"rank": int(rank), "pid": int(pid)}:
                peer.rank, peer.pid = rank, pid
            case _ if peer.node > 0:
                self._last_seen[peer.node] = time.monotonic()
                if self.coordinator is not None and "alive" not in message:
                    self.coordinator.take(peer.node, message)
            case {"ready": True, "lost": lost, "request": request} if self._lives(peer):
                self._waiting[peer.rank] = {"ready": peer.rank, "lost": lost, "request": request}
                self._report(self._waiting[peer.rank])
            case {"apart": _} | {"done": _} if self._lives(peer):
                self._report(message)

    def _may_link(self, node: int) -> bool:
        return self.coordinator is not None and node in self.coordinator.missing

    def _lives(self, peer: Peer) -> bool:
        """Not so of the last words of a rank that has been reaped since."""
        return self._pids.get(peer.rank) == peer.pid

    # The first node

    def _lead(self, nodes: Iterable[int], after: int = 0) -> None:
        """Coordinate these nodes; the first epoch is the one after `after`."""
        self.coordinator = EpochCoordinator(
            nodes,
            self._deliver,
            requested=lambda number: request_path(self.directory, number).exists(),
            finished=partial(is_done, self.directory),
            node_lost=self._tell_node_lost,
            node=self.node,
            after=after,
        )
        self.coordinator.join(self.node, self.own)

    def _miss(self, coordinator: EpochCoordinator) -> None:
        """Nodes have not come: when the group starts, something is wrong; later they are lost too."""
        if self.node == 0:
            coordinator.missing.clear()
            coordinator.fail()
        else:
            for node in list(coordinator.missing):
                coordinator.lose(node)

    def _deliver(self, node: int, message: Message) -> None:
        if node == self.node:
            self._take_answer(message)
            return
        for peer in self._peers:
            if peer.node == node:
                # One that takes nothing is found lost by its silence.
                with contextlib.suppress(OSError):
                    peer.lines.send(message)

    def _drop(self, node: int) -> None:
        """Give up the node at the other end of a link."""
        del self._last_seen[node]
        if self.coordinator is None:
            self._lose_first()
            return
        for peer in [peer for peer in self._peers if peer.node == node]:
            self._close(peer)
        self.coordinator.lose(node)

    def _tell_node_lost(self, node: int) -> None:
        sys.stderr.write(f"node {node} of the group is lost; the others go on\n")
        self._send_event(NodeLost(node=node))

    def _send_event(self, event: Event) -> None:
        with contextlib.closing(EventSender(events_path(self.directory), self.own.start)) as sender:
            sender.send_reliable(event)

    # Another node

    @property
    def _awaits_move(self) -> bool:
        return self.coordinator is None and self.uplink is None and self.moves and self._end_at is not None

    def _link(self, patience_s: float) -> None:
        """Link to the first node, which gives its first sign of life within this time."""
        self.uplink = LineSocket.connect(uplink_path(self.directory))
        self.uplink.send({"node": self.node, "ranks": list(self.own)})
        self._last_seen[0] = time.monotonic() + patience_s
        self.selector.register(self.uplink, selectors.EVENT_READ, self._read_uplink)

    def _read_uplink(self) -> None:
        if self.uplink is None:
            return
        try:
            messages = self.uplink.receive()
        except OSError:
            self._drop(0)
            return
        self._last_seen[0] = time.monotonic()
        for message in messages:
            self._take_answer(message)

    def _lose_first(self) -> None:
        """Without the first node there is no next epoch: the ranks wait for another one, or end."""
        assert self.uplink is not None
        sys.stderr.write("this node has lost the first node of its group\n")
        self._close_uplink(self.uplink)
        self.moves = self.moves and not self._over
        if not self.moves:
            self._dismiss()
            return
        self._end_at = time.monotonic() + MOVE_S
        moved_path(self.directory).unlink(missing_ok=True)
        if self._epoch is not None:
            self._tell({"broken": self._epoch["epoch"]}, self._epoch["ranks"])
        self._send_event(FirstNodeLost())

    def _close_uplink(self, uplink: LineSocket) -> None:
        self.selector.unregister(uplink)
        uplink.close()
        self.uplink = None

    def _dismiss(self) -> None:
        """Let the ranks end by themselves: those that look at their connections do, and say why."""
        for peer in [peer for peer in self._peers if peer.rank >= 0]:
            self._close(peer)
        for rank in list(self._undecided):
            self._take_answer({"gone": rank})
        self._end_at = time.monotonic() + _LEAVE_S

    def _leave(self) -> None:
        """The ranks have had their time."""
        if self._awaits_move:
            self.moves = False
            self._dismiss()
        else:
            self._end_at = None
            self.ranks.end_all(PEERS_LOST)

    def _move(self, move: Move) -> None:
        """Go on with another first node, which may be this one."""
        after = 0 if self._epoch is None else self._epoch["epoch"]
        if move.first == self.node:
            self._meet_by = time.monotonic() + MEET_AGAIN_S
            self._lead(move.nodes, after)
        else:
            try:
                self._link(MEET_AGAIN_S)
            except OSError:
                # Its launcher has ended, and this process does so soon.
                return
        self._end_at = None
        for rank in list(self._pids):
            self._report({"start": rank})
        for message in [*self._waiting.values(), *self._undecided.values()]:
            self._report(message)

    # Both

    def _cut_off(self) -> None:
        """Leave the group without another word: to the others this node is lost."""
        for peer in [peer for peer in self._peers if peer.node > 0]:
            self._close(peer)
        if self.uplink is not None:
            self._close_uplink(self.uplink)
        self.coordinator, self.moves = None, False
        self._last_seen.clear()

    def _report(self, message: Message) -> None:
        """Pass a message on to the coordinator, if this node reaches one."""
        if self.coordinator is not None:
            self.coordinator.take(self.node, message)
        elif self.uplink is not None:
            try:
                self.uplink.send(message)
            except OSError:
                self._drop(0)

    def _say_alive(self) -> None:
        links = [peer.lines for peer in self._peers if peer.node > 0]
        for each in links if self.uplink is None else [self.uplink]:
            with contextlib.suppress(OSError):
                each.send({"alive": True})

    def _take_answer(self, message: Message) -> None:
        """Take an answer of the coordinator; a rank is told what concerns it."""
        match message:
            case {"epoch": _, "ranks": ranks}:
                self._epoch = message
                for rank in ranks:
                    self._waiting.pop(rank, None)
                self._tell(message, ranks)
            case {"broken": number, "members": ranks}:
                self._tell({"broken": number}, ranks)
            case {"joining": number, "members": ranks}:
                self._tell({"joining": number}, ranks)
            case {"finished": request, "rank": rank}:
                self._waiting.pop(rank, None)
                self._tell({"finished": request}, [rank])
            case {"again": rank} if self._undecided.pop(rank, None):
                name = self._signals[rank]
                sys.stderr.write(
                    f"rank {rank} was ended by {name}; the others go on, and it is started again\n"
                )
                self.ranks.replace(rank)
            case {"gone": rank} if self._undecided.pop(rank, None):
                self.ranks.release(rank)
            case {"over": code}:
                self._over = True
                self.ranks.end_all(code)

    def _tell(self, message: Message, ranks: list[int]) -> None:
        for peer in self._peers:
            if peer.rank in ranks and self._lives(peer):
                # A rank that has ended is reaped soon.
                with contextlib.suppress(OSError):
                    peer.lines.send(message)
