"""Which running jobs begin anew on more slots, when slots are free and no job waits for them.

At the end of a night a few long jobs would render on the slots that they got while the farm was full. Such a
job writes its checkpoint and ends its group; the next round gives it its share of the free slots, and it goes
on from the checkpoint. Which ranks render what changes no bit of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from jobs.scheduler.placement import Node, RunningGroup, place

REGROUP_GAIN_S = 60.0
"""A job begins anew where it ends so much sooner; the start of its new group takes part of it."""
_EFFICIENCY = 0.7
"""Of added ranks: windows do not divide evenly among them."""


_MOST_AT_ONCE = 16
"""Jobs that begin anew in one round of the dispatcher."""


@dataclass(frozen=True, kw_only=True)
class Regrouping:
    """A job that has `now` ranks and should go on with `ranks`."""

    job: str
    ranks: int
    now: int


def jobs_to_regroup(
    nodes: Sequence[Node], running: Iterable[RunningGroup], gain_s: float = REGROUP_GAIN_S
) -> list[Regrouping]:
    """The running jobs that end `gain_s` sooner on more of the free slots, those that end last first.

    Each at least doubles its ranks, so that a job begins anew a few times at most; what placement would give
    it is asked of placement itself.
    """
    groups = list(running)
    found: list[Regrouping] = []
    for group in _candidates(nodes, groups, gain_s):
        assert group.anew is not None, "a candidate may begin anew"
        now = sum(group.slots.values())
        others = [each for each in groups if each is not group]
        placed = place(nodes, others, [group.anew], []).placed
        ranks = placed[0].ranks if placed else 0
        if ranks >= 2 * now and _gain(group, now, ranks) >= gain_s:
            groups = [*others, replace(group, slots=placed[0].slots)]
            found.append(Regrouping(job=group.job, ranks=ranks, now=now))
    return found


def _candidates(nodes: Sequence[Node], groups: Sequence[RunningGroup], gain_s: float) -> list[RunningGroup]:
    """The few groups that end last, of those that may gain if all free slots are of use to them."""
    up = {node.name for node in nodes}
    held = sum(count for group in groups for name, count in group.slots.items() if name in up)
    free = sum(node.slots for node in nodes) - held
    found = [
        group
        for group in groups
        if group.anew is not None
        and (now := sum(group.slots.values())) <= free
        and group.anew.most >= 2 * now > 0
        and _gain(group, now, min(group.anew.most, now + free)) >= gain_s
    ]
    return sorted(found, key=lambda group: (-(group.ends_in or 0.0), group.job))[:_MOST_AT_ONCE]


def _gain(group: RunningGroup, now: int, ranks: int) -> float:
    """Seconds by which it ends sooner."""
    return (group.ends_in or 0.0) * (1 - now / (now + _EFFICIENCY * (ranks - now)))
