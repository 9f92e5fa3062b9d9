"""Which ranks of a node render together, epoch after epoch. Pure: no process, no socket, no clock.

The first epoch begins when all ranks are ready. A rank that dies breaks the epoch: the others come back, and
the next one begins with them at once. The dead rank's successor joins between two steps when it has loaded
its model: it is ready, the running ranks are told, and the next epoch begins when they have come back.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The ranks that render together, ascending. `number` counts from 1."""

    number: int
    ranks: tuple[int, ...]


class Epochs:
    """The epochs of a group whose ranks all live on one node. Ranks are those that torchrun has numbered."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.current: Epoch | None = None
        self.broken = False
        """A rank of the current epoch has died."""
        self.members: set[int] = set()
        """The ranks of the current epoch that live; the successor of one that died is none of them."""
        self._alive: set[int] = set()
        self._ready: set[int] = set()

    @property
    def joining(self) -> bool:
        """Whether a rank outside of the current epoch waits to be in the next."""
        return self.current is not None and bool(self._ready - self.members)

    def start(self, rank: int) -> None:
        """A process of this rank begins; it is in no epoch yet."""
        self._alive.add(rank)

    def ready(self, rank: int) -> None:
        """The rank waits for the next epoch; its part in the current one has ended."""
        self._ready.add(rank)

    def end(self, rank: int, *, died: bool) -> None:
        """The rank's process has ended: it died, or it has done its work."""
        self._alive.discard(rank)
        self._ready.discard(rank)
        if rank in self.members:
            self.members.discard(rank)
            self.broken |= died

    @property
    def over(self) -> bool:
        """Whether all ranks of the current epoch have ended: nobody can join them any more."""
        return self.current is not None and not self.members

    def survive(self, rank: int) -> bool:
        """Whether others can go on without this rank, which lives no more."""
        return bool(self._alive - {rank} if self.current is None else self.members)

    def next(self) -> Epoch | None:
        """Begin the next epoch if everybody who has to be in it is ready; None otherwise."""
        if self.current is None:
            complete = len(self._ready) == self.ranks
        else:
            complete = bool(self.members) and self.members <= self._ready
        if not complete:
            return None
        number = 1 if self.current is None else self.current.number + 1
        self.current = Epoch(number=number, ranks=tuple(sorted(self._ready)))
        self.members = set(self._ready)
        self._ready.clear()
        self.broken = False
        return self.current
