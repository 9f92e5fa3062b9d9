"""How the time of slots is dealt out to attempts: images that a slot renders at once have it together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Stay:
    """An attempt on one slot, in seconds since the epoch."""

    attempt: str
    slot: tuple[str, int]
    """Its node and number."""
    begin: float
    end: float


def slot_seconds(stays: Iterable[Stay]) -> dict[str, float]:
    """The slot seconds of each attempt: at any moment the attempts on a slot have equal shares of it."""
    by_slot: dict[tuple[str, int], list[Stay]] = {}
    for stay in stays:
        if stay.end > stay.begin:
            by_slot.setdefault(stay.slot, []).append(stay)
    found: dict[str, float] = {}
    for own in by_slot.values():
        for attempt, seconds in _dealt(own):
            found[attempt] = found.get(attempt, 0.0) + seconds
    return found


def _dealt(stays: list[Stay]) -> Iterable[tuple[str, float]]:
    """(attempt, seconds) of one slot, from each moment at which an attempt comes or goes to the next."""
    changes = sorted({moment for stay in stays for moment in (stay.begin, stay.end)})
    coming = sorted(stays, key=lambda stay: stay.begin, reverse=True)
    there: list[Stay] = []
    for moment, after in pairwise(changes):
        there = [stay for stay in there if stay.end > moment]
        while coming and coming[-1].begin <= moment:
            there.append(coming.pop())
        for stay in there:
            yield stay.attempt, (after - moment) / len(there)
