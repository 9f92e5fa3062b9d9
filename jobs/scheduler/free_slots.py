"""The free slots of some nodes, ordered by how many each has."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping

MayUse = Callable[[str], bool]
"""Whether a job may use the free slots of a node."""


class FreeSlots:
    """Nodes with free slots. A round on a thousand nodes asks and changes it thousands of times."""

    def __init__(self, free: Mapping[str, int]) -> None:
        self._names: dict[int, list[str]] = {}
        """By number of free slots, sorted."""
        for name in sorted(free):
            if free[name] > 0:
                self._names.setdefault(free[name], []).append(name)

    def change(self, name: str, old: int, new: int) -> None:
        """A node of these has `new` free slots in place of `old`."""
        if old > 0:
            names = self._names[old]
            del names[bisect_left(names, name)]
            if not names:
                del self._names[old]
        if new > 0:
            insort(self._names.setdefault(new, []), name)

    def smallest(self, slots: int, may_use: MayUse) -> str | None:
        """The node with the fewest free slots that holds so many, the first by name; None without one."""
        for count in sorted(count for count in self._names if count >= slots):
            for name in self._names[count]:
                if may_use(name):
                    return name
        return None

    def emptiest_first(self, may_use: MayUse) -> Iterator[tuple[str, int]]:
        """(node, free slots), the most slots first, then by name."""
        for count in sorted(self._names, reverse=True):
            for name in self._names[count]:
                if may_use(name):
                    yield name, count
