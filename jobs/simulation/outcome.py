"""What a simulation has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OwnerWait:
    """How long an owner's jobs waited from submission to their first start, in seconds."""

    owner: str
    jobs: int
    mean_s: float
    median_s: float
    worst_s: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result. Slot seconds count one slot for one second."""

    start: float
    end: float | None
    """When the last job was done, in seconds since the epoch; None if some are not done."""
    jobs: int
    done: int
    slots: int
    makespan_s: float
    useful_slot_s: float
    """What one rank would need for the images: its model calls and decoding, without starts and waiting."""
    held_slot_s: float
    """Slots that groups held, ranks that waited for others included."""
    lost_slot_s: float
    """Work that was done again after a node was lost."""
    busy_share: float
    """`useful_slot_s` over all slots for the whole makespan."""
    waits: tuple[OwnerWait, ...]
    faults: int
    events: int
    rounds: int
    slowest_round_s: float
    """Real seconds of the slowest round of placement."""
    simulated_in_s: float
    """Real seconds of the whole simulation."""

    @property
    def lower_bound_s(self) -> float:
        """The useful work divided by all slots: no placement takes less."""
        return self.useful_slot_s / self.slots


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of some values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
