"""Groups that stay warm on their slots after an image, with the model loaded."""

from __future__ import annotations

from collections import Counter

Slots = frozenset[tuple[str, int]]
"""(node, slots) of a group."""


class WarmGroups:
    """The idle groups, by model and slots. Another group that starts on their slots ends them."""

    def __init__(self) -> None:
        self._idle: Counter[tuple[str, Slots]] = Counter()

    def add(self, model: str, slots: dict[str, int]) -> None:
        """A group has finished an image."""
        self._idle[model, frozenset(slots.items())] += 1

    def take(self, model: str, slots: dict[str, int], free: dict[str, int]) -> bool:
        """Whether a group that starts on these slots is a warm one.

        `free` is the number of slots on each node that no running group holds, these included.
        """
        key = (model, frozenset(slots.items()))
        if self._idle[key]:
            self._idle[key] -= 1
            return True
        for node, count in slots.items():
            self._end_on(node, free[node] - count)
        return False

    def end_node(self, node: str) -> None:
        """A node is lost, and all groups on it."""
        self._end_on(node, 0)

    def _end_on(self, node: str, allowed: int) -> None:
        """End groups of a node until those that stay hold no more than `allowed` slots there."""
        here = [
            (key, dict(key[1])[node]) for key, count in self._idle.items() if count and node in dict(key[1])
        ]
        held = sum(each * self._idle[key] for key, each in here)
        for key, each in here:
            while held > allowed and self._idle[key]:
                self._idle[key] -= 1
                held -= each
