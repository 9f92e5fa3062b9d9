"""Which ranks of a group render together, epoch after epoch. Pure: no process, no socket, no clock.

The first epoch begins when all ranks are ready. A rank that dies breaks the epoch, and so does one that no
longer reaches the others: all come back, and the next epoch begins with those that live at once. The dead
rank's successor joins between two steps when it has loaded its model: it is ready, the running ranks are
told, and the next epoch begins when they have come back. So does a rank that is added. One that is to leave
comes back with the others, and is not in the next epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The ranks that render together, ascending. `number` counts from 1."""

    number: int
    ranks: tuple[int, ...]


class Epochs:
    """The epochs of a group, on one node or several. Ranks are those that torchrun has numbered."""

    def __init__(self, ranks: int = 0, after: int = 0) -> None:
        """`ranks` are the first ones that the first epoch waits for; its number is that after `after`."""
        self._after = after
        self.current: Epoch | None = None
        self.broken = False
        """A rank of the current epoch has died, or does not reach the others."""
        self.members: set[int] = set()
        """The ranks of the current epoch that live; the successor of one that died is none of them."""
        self._awaited = set(range(ranks))
        """The ranks that the first epoch waits for."""
        self._alive: set[int] = set()
        self._ready: set[int] = set()
        self._removed: set[int] = set()

    @property
    def joining(self) -> bool:
        """Whether a rank outside of the current epoch waits to be in the next, or one of it is to leave."""
        if self.current is None:
            return False
        staying = (self.members | self._ready) - self._removed
        return bool(staying - self.members) or (bool(staying) and not staying >= self.members)

    def expect(self, ranks: Iterable[int]) -> None:
        """The first epoch waits for these ranks too."""
        self._awaited |= set(ranks)

    def start(self, rank: int) -> None:
        """A process of this rank begins; it is in no epoch yet."""
        self._alive.add(rank)

    def ready(self, rank: int, *, lost: bool = False) -> None:
        """The rank waits for the next epoch; its part in the current one has ended. `lost` means that it did
        not reach the others any more."""
        self._ready.add(rank)
        self.broken |= lost and rank in self.members

    def leave(self, rank: int) -> None:
        """The rank is to be in no further epoch, as long as there are others."""
        self._removed.add(rank)

    def is_removed(self, rank: int) -> bool:
        """Whether the rank is to leave, and has not ended yet."""
        return rank in self._removed

    def dismissed(self) -> set[int]:
        """The ranks that are to leave and may end now, each once: they wait, and no epoch has them."""
        if self.current is None:
            return set()
        found = (self._removed & self._ready) - self.members
        self._ready -= found
        return found

    def forget(self, rank: int) -> None:
        """The rank waits no more, since it has nothing left to do."""
        self._ready.discard(rank)

    def end(self, rank: int, *, died: bool) -> None:
        """The rank's process has ended: it died, or it has done its work."""
        self._alive.discard(rank)
        self._ready.discard(rank)
        self._removed.discard(rank)
        if rank in self.members:
            self.members.discard(rank)
            self.broken |= died

    def give_up(self, rank: int) -> None:
        """The rank is gone with its node, and no successor comes."""
        self._awaited.discard(rank)
        self.end(rank, died=True)

    @property
    def over(self) -> bool:
        """Whether all ranks of the current epoch have ended: nobody can join them any more."""
        return self.current is not None and not self.members

    def survive(self, rank: int) -> bool:
        """Whether others can go on without this rank, which lives no more."""
        return bool(self._alive - {rank} if self.current is None else self.members)

    def next(self) -> Epoch | None:
        """Begin the next epoch if everybody who has to be in it is ready; None otherwise."""
        wanted = self._awaited if self.current is None else self.members
        if not wanted or not wanted <= self._ready:
            return None
        number = 1 + (self._after if self.current is None else self.current.number)
        # The last ones stay; others that are to leave wait until they are told that they may end.
        self.members = self._ready - self._removed or set(self._ready)
        self.current = Epoch(number=number, ranks=tuple(sorted(self.members)))
        self._ready -= self.members
        self.broken = False
        return self.current
