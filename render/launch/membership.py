"""Which nodes belong to a group that is forming. Pure: the time comes in as an argument.

A group of LEAST:MOST nodes starts at once when MOST are there, and with fewer as soon as at least LEAST are
there and nobody has joined for `last_call_s`. Ranks are numbered by the nodes' own numbers.
"""

from __future__ import annotations


class JoinRefused(Exception):
    """A node cannot join; the text is one sentence for a person."""


class Membership:
    """The nodes that have joined so far, by number. Times are seconds of any clock that only grows."""

    def __init__(self, least: int, most: int, last_call_s: float) -> None:
        self.least, self.most, self._last_call_s = least, most, last_call_s
        self._joined: set[int] = set()
        self._last_join = 0.0
        self._started: tuple[int, ...] | None = None

    def join(self, node: int, now: float) -> None:
        """Add a node; raises `JoinRefused`."""
        if not 0 <= node < self.most:
            raise JoinRefused(f"node-rank: {node} is not a node of this group; use 0 to {self.most - 1}")
        if self._started is not None:
            count = len(self._started)
            raise JoinRefused(
                f"node {node} came too late: the group has started with {count} node{'s' * (count != 1)}; "
                "start it again when the image is not finished by then"
            )
        if node in self._joined:
            raise JoinRefused(f"node-rank: {node} has joined already; give every node a number of its own")
        self._joined.add(node)
        self._last_join = now

    def leave(self, node: int) -> None:
        """Remove a node that has gone before the group started."""
        if self._started is None:
            self._joined.discard(node)

    def due_in(self, now: float) -> float | None:
        """Seconds until the group starts if nobody joins or leaves; None while it lacks nodes."""
        if len(self._joined) < self.least:
            return None
        if len(self._joined) == self.most:
            return 0.0
        return max(0.0, self._last_join + self._last_call_s - now)

    def start(self) -> tuple[int, ...]:
        """Admit nobody else; the members' numbers, in the order of their ranks."""
        self._started = tuple(sorted(self._joined))
        return self._started

    @property
    def missing(self) -> str:
        """Who is missing, for an error message."""
        absent = [str(node) for node in range(self.most) if node not in self._joined]
        return f"node{'s' * (len(absent) != 1)} {', '.join(absent)}"
