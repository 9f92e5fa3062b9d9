"""Decides the epochs of a group: the first node's fork server's part in `epochs.py`. No socket, no clock.

It takes messages of the nodes' servers (`epoch_server.py`), its own node's among them, and answers:

    {"start": 2}                                      a process of rank 2 begins
    {"ready": 2, "lost": false, "request": 1}         it waits for the next epoch, to render a request
        ->  {"epoch": 2, "ranks": [0, 2], "first": 0} which begins with these ranks, on node 0
        ->  {"finished": 1, "rank": 2}                the request is finished: there is nothing to wait for
    {"end": 2, "died": true, "crashed": true}         it has ended
        ->  {"again": 2}  or  {"gone": 2}             whether it is started again
    {"more": 2}                                       the node has two ranks more
        ->  {"added": [4, 5], "request": 1}           which get these numbers, and begin with this request
    {"leave": [4]}                                    ranks are not to be in the next epoch
        ->  {"dismissed": 4}                          one of them is not, and ends
    {"apart": 1}                                      each rank renders request 1 without the others
    {"done": 1}                                       all ranks are done with it
        ->  {"broken": 1, "members": [0, 1]}          these have to come back: a rank of their epoch has died
        ->  {"joining": 1, "members": [0, 1]}         a rank waits to join them, or one of them is to leave
        ->  {"over": 0}                               the group has ended; what is left ends with this code

A rank that was added ends nothing but itself: the others go on without it, whatever it has ended with. If
ranks do not reach each other in the first epoch of one that was added, that one leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from render.launch.epochs import Epochs
from render.launch.rank_environment import PEERS_LOST

MOST_DEATHS = 10
"""The most ranks that are replaced in one request; then the group fails."""
Message = dict[str, Any]


class EpochCoordinator:
    """The epochs of one group. In one thread."""

    def __init__(
        self,
        nodes: Iterable[int],
        send: Callable[[int, Message], None],
        requested: Callable[[int], bool],
        finished: Callable[[int], bool],
        node_lost: Callable[[int], None] = lambda node: None,
        node: int = 0,
        after: int = 0,
    ) -> None:
        """The first epoch waits for all `nodes` to join; its number is the one after `after`. `node` is the
        coordinator's own.

        `send` takes a node and a message for it; it may call `take` for a rank that it starts again.
        `requested` tells whether there is a request of a number, `finished` whether whoever has started the
        group knows that it is finished. `node_lost` is called when the group goes on without a node.
        """
        self.epochs = Epochs(after=after)
        self.missing = set(nodes)
        """The nodes that have not joined yet."""
        self._node = node
        self._send, self._node_lost = send, node_lost
        self._requested, self._finished = requested, finished
        self._nodes: dict[int, set[int]] = {}
        """The ranks of each node that is there."""
        self._added: set[int] = set()
        """Ranks that came to the group after it had begun."""
        self._members_before: set[int] = set()
        """Ranks that have been in an earlier epoch than the running one."""
        self._next_rank = 0
        self._requests: dict[int, int] = {}
        """The request of each rank that waits."""
        self._told: Message | None = None
        self._ended = False
        self._done = self._apart = self._deaths = 0
        """The requests that all ranks are done with, and that they render without each other; and how many
        ranks have been replaced since."""

    @property
    def nodes(self) -> set[int]:
        """The nodes that are there."""
        return set(self._nodes)

    @property
    def _works_apart(self) -> bool:
        return self._apart > self._done

    def join(self, node: int, ranks: Iterable[int], added: Iterable[int] = ()) -> None:
        """A node is there, with these ranks; those `added` came after the group had begun."""
        self._nodes[node] = set(ranks)
        self._added |= set(added)
        self._next_rank = max([self._next_rank, *(rank + 1 for rank in self._nodes[node])])
        self.missing.discard(node)
        self.epochs.expect(self._nodes[node])

    def admit(self, node: int) -> None:
        """A node is there whose ranks are added to the group."""
        self._nodes.setdefault(node, set())

    def take(self, node: int, message: Message) -> None:
        """A message of a node that has joined. What is none of the messages above is passed over."""
        own = self._nodes[node]
        match message:
            case {"start": int(rank)} if rank in own:
                self.epochs.start(rank)
            case {"ready": int(rank), "lost": bool(lost), "request": int(request)} if rank in own:
                self._requests[rank] = request
                if lost and rank in self.epochs.members and not self.epochs.broken:
                    self._give_up_newcomers()
                self.epochs.ready(rank, lost=lost)
                self.tick()
            case {"end": int(rank), "died": bool(died), "crashed": bool(crashed)} if rank in own:
                self._end(node, rank, died=died, crashed=crashed)
            case {"more": int(count)} if not self._ended:
                self._add(node, count)
            case {"leave": list(ranks)}:
                for rank in own & {rank for rank in ranks if type(rank) is int}:
                    self.epochs.leave(rank)
            case {"apart": int(request)}:
                self._apart = max(self._apart, request)
            case {"done": int(request)} if request > self._done:
                self._done, self._deaths = request, 0
        self._announce()

    def lose(self, node: int) -> None:
        """A node is gone: its server has ended, or does not answer."""
        self.missing.discard(node)
        ranks = self._nodes.pop(node, set())
        for rank in ranks:
            self._requests.pop(rank, None)
            self.epochs.give_up(rank)
        if self._ended:
            return
        if ranks <= self._added and not self._works_apart and self.epochs.survive(-1):
            # The group has been there without it.
            self._node_lost(node)
            self._announce()
            return
        idle = not self._requested(self._done + 1)
        if idle or self._works_apart or not self.epochs.survive(min(ranks, default=-1)):
            self.fail()
            return
        self._node_lost(node)
        self._announce()

    def fail(self) -> None:
        """End the group on all nodes."""
        self._end_on(self._nodes, PEERS_LOST)

    def tick(self) -> None:
        """Look whether ranks wait to render what is finished; to be called now and then."""
        for rank, request in list(self._requests.items()):
            if self._finished(request):
                del self._requests[rank]
                self.epochs.forget(rank)
                self._send(self._node_of(rank), {"finished": request, "rank": rank})

    def _add(self, node: int, count: int) -> None:
        numbers = range(self._next_rank, self._next_rank + count)
        self._next_rank = numbers.stop
        self._added |= set(numbers)
        self._nodes[node] |= set(numbers)
        request = max(1, self._done + self._requested(self._done + 1))
        self._send(node, {"added": list(numbers), "request": request})

    def _give_up_newcomers(self) -> None:
        """Ranks do not reach each other: those that were added for this epoch, as far as anybody knows."""
        for rank in (self.epochs.members & self._added) - self._members_before:
            self.epochs.leave(rank)

    def _end(self, node: int, rank: int, *, died: bool, crashed: bool) -> None:
        self._requests.pop(rank, None)
        removed, joined = self.epochs.is_removed(rank), rank in self.epochs.members
        self.epochs.end(rank, died=died)
        if self._ends_alone(rank, removed=removed, joined=joined):
            self._nodes[node].discard(rank)
            self._send(node, {"left": rank})
            return
        again = crashed and not self._ended and not self._works_apart and self._deaths < MOST_DEATHS
        if again and self.epochs.survive(rank):
            self._deaths += 1
            self._send(node, {"again": rank})
            return
        self._send(node, {"gone": rank})
        if died:
            # On its own node torchrun ends the others, if it has started the rank.
            nodes = self.nodes if rank in self._added else self.nodes - {node}
            self._end_on(nodes, PEERS_LOST)
        elif self.epochs.over:
            # A rank that was to replace another has come too late.
            self._end_on(self._nodes, 0)

    def _ends_alone(self, rank: int, *, removed: bool, joined: bool) -> bool:
        """Whether the group goes on without a rank that has ended, and without a successor of it."""
        if not (removed or rank in self._added) or self._ended:
            return False
        return not joined or (self.epochs.survive(rank) and not self._works_apart)

    def _end_on(self, nodes: Iterable[int], code: int) -> None:
        if not self._ended:
            self._ended = True
            for node in list(nodes):
                self._send(node, {"over": code})

    def _announce(self) -> None:
        """Begin an epoch that is due; else tell the running one what has become of it."""
        if self._ended or self.missing:
            return
        running = set(self.epochs.members)
        began = self.epochs.next()
        current = self.epochs.current
        for rank in self.epochs.dismissed():
            self._requests.pop(rank, None)
            self._send(self._node_of(rank), {"dismissed": rank})
        if began is not None:
            self._members_before |= running
            for rank in began.ranks:
                self._requests.pop(rank, None)
            message = {"epoch": began.number, "ranks": list(began.ranks), "first": self._node}
            self._tell(message, began.ranks)
        elif current is not None and self.epochs.broken:
            members = sorted(self.epochs.members)
            self._tell({"broken": current.number, "members": members}, members)
        elif current is not None and self.epochs.joining:
            members = sorted(self.epochs.members)
            self._tell({"joining": current.number, "members": members}, members)

    def _tell(self, message: Message, ranks: Iterable[int]) -> None:
        if message != self._told:
            self._told = message
            for node in {self._node_of(rank) for rank in ranks}:
                self._send(node, message)

    def _node_of(self, rank: int) -> int:
        return next(node for node, ranks in self._nodes.items() if rank in ranks)
