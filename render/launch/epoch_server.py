"""Tells the ranks of a node which ranks render together: the fork server's part in `epochs.py`.

Each rank keeps one connection to a unix socket of the group's directory. Both sides send lines of JSON:

    {"rank": 0, "pid": 1234}                           the rank is there
    {"ready": true, "lost": false, "request": 1}       it waits for the next epoch
        ->  {"epoch": 2, "ranks": [0, 2], "first": 0,  ... which begins; the rank speaks for its node, and all
             "leader": true, "spans": false}            ranks are on one
        ->  {"finished": 1}                            ... and need not: the request is finished
        ->  {"dismissed": true}                        ... and is in none any more: it ends
    {"apart": 1}, {"done": 1}                          see `epoch_coordinator.py`
        ->  {"broken": 1}                              a rank has died, and the epoch with it
        ->  {"joining": 1}                             a rank waits to join, or one is to leave

The server of the first node has the group's coordinator. Those of other nodes have a link to it: a connection
to a unix socket of their launcher, which passes it on over mutual TLS (`store_relay.py`) to the first node's
launcher, and that to the same socket as the ranks of that node. A link begins with the node's number and its
ranks, {"node": 1, "ranks": [2, 3], "added": [3]}; both ends say {"alive": true} all the time. A node whose
ranks are added to a group that renders has none yet, and its link begins with {"node": 1, "joins": true}.

A node that loses the first one tells whoever has started its group. Where that names another first node
(`rendezvous_config.Move`), the server of that one makes a coordinator of its own, the others link to it, and
all repeat what their ranks wait for. Else the ranks end.
"""

from __future__ import annotations

import contextlib
import selectors
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from render.events import Event, FirstNodeLost, NodeLost
from render.launch.added_ranks import REQUESTS_BEFORE
from render.launch.epoch_coordinator import EpochCoordinator
from render.launch.epoch_peers import Message, Peer, Peers
from render.launch.event_channel import EventSender
from render.launch.group_directory import events_path, is_done, leave_path, moved_path, request_path
from render.launch.node_links import ALIVE_S, SILENCE_S, NodeLinks
from render.launch.node_ranks import Forks, NodeRanks
from render.launch.rank_environment import PEERS_LOST
from render.launch.rendezvous_config import JOINS, MOVES, Move

MEET_S = 300.0
"""Nodes that have joined the group have so long to import what their ranks need."""
MEET_AGAIN_S = 5.0
"""... and so long to link to another first node."""
MOVE_S = 20.0
"""Ranks that have lost the first node wait so long for another one."""
_LEAVE_S = 2.0
"""Ranks that are not to wait have so long to end by themselves."""


@dataclass
class EpochServer:
    """The epochs of one group on one node; in the thread of the fork server."""

    directory: Path
    node: int
    nodes: int
    selector: selectors.BaseSelector
    forks: Forks
    ranks: NodeRanks
    """Of this node."""
    moves: bool
    """Whether another node may become the first one."""
    coordinator: EpochCoordinator | None = None
    """On the first node."""
    links: NodeLinks = field(init=False)
    """To other nodes."""
    _peers: Peers = field(init=False)
    _meet_by: float = field(default_factory=lambda: time.monotonic() + MEET_S)
    _end_at: float | None = None
    """When the ranks that are left are killed."""
    _offset: int = 0
    """What the numbers of the group's requests are larger by than those of this node's directory."""
    _epoch: Message | None = None
    """The newest epoch."""
    _over: bool = False
    """The coordinator has ended the group."""

    def __post_init__(self) -> None:
        self._peers = Peers.open(self.directory, self.selector, self._take, self._drop)
        self.links = NodeLinks(self.directory, self.selector, self._peers, self._take_answer, self._drop)

    @classmethod
    def open(
        cls,
        directory: Path,
        environment: Mapping[str, str],
        selector: selectors.BaseSelector,
        forks: Forks,
    ) -> EpochServer:
        """The server of the group in a directory; the environment is that of any of its ranks."""
        moves = environment.get(MOVES) == "1"
        if JOINS in environment:
            node = int(environment[JOINS])
            server = cls(directory, node, node + 1, selector, forks, NodeRanks(range(0)), moves)
            server.links.link({"node": node, "joins": True}, MEET_S)
            return server
        node, nodes = int(environment.get("GROUP_RANK", 0)), int(environment.get("GROUP_WORLD_SIZE", 1))
        first = int(environment["RANK"]) - int(environment["LOCAL_RANK"])
        own = NodeRanks(range(first, first + int(environment["LOCAL_WORLD_SIZE"])))
        server = cls(directory, node, nodes, selector, forks, own, moves)
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
        self.ranks.start(rank, pid)
        self._report({"start": rank})

    def end(self, rank: int, code: int, *, replaceable: bool) -> None:
        """The rank has ended, with an exit code or by a signal (negative). It is replaced or released, now or
        soon; `replaceable` is False for one that torchrun has stopped itself."""
        ended = self.ranks.end(rank, code, replaceable=replaceable)
        if leave_path(self.directory).exists():
            self._cut_off()
        if self.coordinator is not None or self.links.uplink is not None or self._awaits_move:
            self.ranks.undecided[rank] = ended
            self._report(ended)
        else:
            self.forks.release(rank)

    def add(self, changes: Sequence[Mapping[str, str]]) -> None:
        """Have ranks join the group; each one's environment differs from the others' by some values."""
        self.ranks.coming += changes
        self._report({"more": len(changes)})

    def remove(self, local_ranks: Sequence[int]) -> None:
        """Have ranks of this node leave the group between two steps; one that torchrun has started stays."""
        self._report({"leave": self.ranks.to_leave(local_ranks)})

    def close_in_child(self) -> None:
        """In a forked rank: the sockets are the server's."""
        self._peers.close_in_child()
        self.links.close_in_child()

    def tick(self) -> None:
        """Give signs of life, look who gives none, and end what has had its time."""
        moment = time.monotonic()
        if self._awaits_move and moved_path(self.directory).exists():
            self._move(Move.read(moved_path(self.directory)))
        if self._end_at is not None and moment > self._end_at:
            self._leave()
        for node in self.links.tick():
            sys.stderr.write(f"node {node} of the group has not answered for {SILENCE_S:g} s\n")
            self._drop(node)
        if self.coordinator is not None:
            self.coordinator.tick()
            if self.coordinator.missing and moment > self._meet_by:
                self._miss(self.coordinator)

    def _take(self, peer: Peer, message: Message) -> None:
        """Take a message of a rank of this node, or of another node."""
        match message:
            case {"node": int(node), "ranks": list(ranks), "added": list(added)} if self._may_link(node):
                assert self.coordinator is not None
                peer.node = node
                self.links.seen(node)
                numbers, later = [[each for each in some if type(each) is int] for some in (ranks, added)]
                self.coordinator.join(node, numbers, later)
            case {"node": int(node), "joins": True} if self._may_join(node):
                assert self.coordinator is not None
                peer.node, self.nodes = node, max(self.nodes, node + 1)
                self.links.seen(node)
                self.coordinator.admit(node)
            case {"rank": int(rank), "pid": int(pid)}:
                peer.rank, peer.pid = rank, pid
            case _ if peer.node > 0:
                self.links.seen(peer.node)
                if self.coordinator is not None and "alive" not in message:
                    self.coordinator.take(peer.node, message)
            case {"ready": True, "lost": lost, "request": request} if self.ranks.lives(peer):
                self.ranks.waiting[peer.rank] = {"ready": peer.rank, "lost": lost, "request": request}
                self._report(self.ranks.waiting[peer.rank])
            case {"apart": _} | {"done": _} if self.ranks.lives(peer):
                self._report(message)

    def _may_link(self, node: int) -> bool:
        return self.coordinator is not None and node in self.coordinator.missing

    def _may_join(self, node: int) -> bool:
        return self.coordinator is not None and node > 0 and node not in self.coordinator.nodes

    # The first node

    def _lead(self, nodes: Iterable[int], after: int = 0) -> None:
        """Coordinate these nodes; the first epoch is the one after `after`."""
        self.coordinator = EpochCoordinator(
            nodes,
            self._deliver,
            requested=lambda number: request_path(self.directory, number - self._offset).exists(),
            finished=lambda number: is_done(self.directory, number - self._offset),
            node_lost=self._tell_node_lost,
            node=self.node,
            after=after,
        )
        self.coordinator.join(self.node, self.ranks.numbers, self.ranks.added)

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
        else:
            self._peers.tell_nodes(message, node)

    def _drop(self, node: int) -> None:
        """Give up the node at the other end of a link."""
        self.links.forget(node)
        if self.coordinator is None:
            self._lose_first()
        else:
            self.coordinator.lose(node)

    def _tell_node_lost(self, node: int) -> None:
        sys.stderr.write(f"node {node} of the group is lost; the others go on\n")
        self._send_event(NodeLost(node=node))

    def _send_event(self, event: Event, rank: int | None = None) -> None:
        """Send an event to whoever has started the group, by default as this node's first rank."""
        sender_rank = self.ranks.of_torchrun.start if rank is None else rank
        with contextlib.closing(EventSender(events_path(self.directory), sender_rank)) as sender:
            sender.send_reliable(event)

    # Another node

    @property
    def _awaits_move(self) -> bool:
        if self.coordinator is not None or self.links.uplink is not None:
            return False
        return self.moves and self._end_at is not None

    def _link(self, patience_s: float) -> None:
        """Link to the first node, which gives its first sign of life within this time."""
        numbers, added = sorted(self.ranks.numbers), sorted(self.ranks.added)
        self.links.link({"node": self.node, "ranks": numbers, "added": added}, patience_s)

    def _lose_first(self) -> None:
        """Without the first node there is no next epoch: the ranks wait for another one, or end."""
        sys.stderr.write("this node has lost the first node of its group\n")
        # One that has not joined the group yet takes nobody's place.
        self.moves = self.moves and not self._over and self._belongs
        if not self.moves:
            self._dismiss()
            return
        self._end_at = time.monotonic() + MOVE_S
        moved_path(self.directory).unlink(missing_ok=True)
        if self._epoch is not None:
            self._tell({"broken": self._epoch["epoch"]}, self._epoch["ranks"])
        self._send_event(FirstNodeLost())

    @property
    def _belongs(self) -> bool:
        """Whether this node's ranks have begun with the group, or have been in an epoch."""
        return bool(self.ranks.of_torchrun) or self._epoch is not None

    def _dismiss(self) -> None:
        """Let the ranks end by themselves: those that look at their connections do, and say why."""
        self._peers.close_ranks()
        for rank in list(self.ranks.undecided):
            self._take_answer({"gone": rank})
        self._end_at = time.monotonic() + _LEAVE_S

    def _leave(self) -> None:
        """The ranks have had their time."""
        if self._awaits_move:
            self.moves = False
            self._dismiss()
        else:
            self._end_at = None
            self.forks.end_all(PEERS_LOST)

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
        for rank in list(self.ranks.pids):
            self._report({"start": rank})
        for message in [*self.ranks.waiting.values(), *self.ranks.undecided.values()]:
            self._report(message)
        if self.ranks.coming:
            self._report({"more": len(self.ranks.coming)})
        if self.ranks.removed:
            self._report({"leave": sorted(self.ranks.removed)})

    # Both

    def _cut_off(self) -> None:
        """Leave the group without another word: to the others this node is lost."""
        self.links.close()
        self.coordinator, self.moves = None, False

    def _report(self, message: Message) -> None:
        """Pass a message on to the coordinator, if this node reaches one."""
        if self.coordinator is not None:
            self.coordinator.take(self.node, message)
        else:
            self.links.send_up(message)

    def _take_answer(self, message: Message) -> None:
        """Take an answer of the coordinator; a rank is told what concerns it."""
        undecided = self.ranks.undecided
        match message:
            case {"epoch": _, "ranks": ranks}:
                self._begin(message, ranks)
            case {"broken": number, "members": ranks}:
                self._tell({"broken": number}, ranks)
            case {"joining": number, "members": ranks}:
                self._tell({"joining": number}, ranks)
            case {"finished": request, "rank": rank}:
                self.ranks.waiting.pop(rank, None)
                self._tell({"finished": request}, [rank])
            case {"added": list(ranks), "request": int(request)}:
                if self.node and not self.ranks.of_torchrun and not self.ranks.added:
                    # The first request of this node is one of the group's.
                    self._offset = request - 1
                coming, self.ranks.coming = self.ranks.coming[: len(ranks)], self.ranks.coming[len(ranks) :]
                for rank, changes in zip(ranks, coming, strict=False):
                    self.ranks.number(rank, changes)
                    self.forks.add(rank, {**changes, REQUESTS_BEFORE: str(self._offset)})
            case {"dismissed": rank}:
                self.ranks.waiting.pop(rank, None)
                self._tell({"dismissed": True}, [rank])
            case {"again": rank} if undecided.pop(rank, None):
                name = self.ranks.ended_by(rank)
                sys.stderr.write(
                    f"rank {rank} was ended by {name}; the others go on, and it is started again\n"
                )
                self.forks.replace(rank)
            case {"left": rank} if undecided.pop(rank, None):
                self.forks.release(rank, 0)
                self._send_event(self.ranks.left(rank), rank)
            case {"gone": rank} if undecided.pop(rank, None):
                self.forks.release(rank)
            case {"over": code}:
                self._over = True
                self.forks.end_all(code)

    def _begin(self, message: Message, ranks: list[int]) -> None:
        """An epoch begins, with these ranks of all nodes."""
        self._epoch = message
        own = sorted(self.ranks.numbers & set(ranks))
        for rank in own:
            self.ranks.waiting.pop(rank, None)
            more = {"leader": rank == own[0], "spans": len(own) < len(ranks)}
            self._tell(message | more, [rank])

    def _tell(self, message: Message, ranks: list[int]) -> None:
        self._peers.tell_ranks(message, ranks, self.ranks.lives)
