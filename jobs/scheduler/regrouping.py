"""Which running jobs begin anew on more slots, when slots are free and no job waits for them.

At the end of a night a few long jobs would render on the slots that they got while the farm was full. Such a
job writes its checkpoint and ends its group; the next round gives it its share of the free slots, and it goes
on from the checkpoint. Which ranks render what changes no bit of an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.scheduler.placement import Node, RunningGroup

REGROUP_GAIN_S = 60.0
"""A job begins anew where it ends so much sooner; the start of its new group takes part of it."""
_EFFICIENCY = 0.7
"""Of added ranks: windows do not divide evenly among them."""


@dataclass(frozen=True, kw_only=True)
class Regrouping:
    """A job that should go on with at least so many ranks."""

    job: str
    ranks: int
    now: int


def jobs_to_regroup(
    nodes: Sequence[Node], running: Iterable[RunningGroup], gain_s: float = REGROUP_GAIN_S
) -> list[Regrouping]:
    """The running jobs that end `gain_s` sooner on more of the free slots, those that end last first.

    Each at least doubles its ranks, so that a job begins anew a few times at most.
    """
    groups = list(running)
    kinds = {node.name: (node.device, node.numerics) for node in nodes}
    free = Counter[tuple[str, str]]()
    for node in nodes:
        free[kinds[node.name]] += node.slots
    for group in groups:
        for name, count in group.slots.items():
            if name in kinds:
                free[kinds[name]] -= count
    found = []
    for group in sorted(groups, key=lambda group: (-(group.ends_in or 0.0), group.job)):
        ranks = sum(group.slots.values())
        kind = kinds.get(next(iter(group.slots), ""))
        if kind is None or not ranks:
            continue
        wanted = min(group.most, ranks + free[kind])
        if wanted >= 2 * ranks and _gain(group, ranks, wanted) >= gain_s:
            free[kind] -= ranks
            found.append(Regrouping(job=group.job, ranks=2 * ranks, now=ranks))
    return found


def _gain(group: RunningGroup, ranks: int, wanted: int) -> float:
    """Seconds by which it ends sooner."""
    return (group.ends_in or 0.0) * (1 - ranks / (ranks + _EFFICIENCY * (wanted - ranks)))
