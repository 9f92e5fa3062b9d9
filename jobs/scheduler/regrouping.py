"""Which running jobs begin anew on more slots, when slots are free and no job waits for them.

At the end of a night a few long jobs would render on the slots that they got while the farm was full. Those
whose nodes have free slots take them as they are (`jobs.scheduler.growing`). Another one writes its
checkpoint and ends its group; the next round gives it its share of the free slots, and it goes on from the
checkpoint. Which ranks render what changes no bit of an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import Node, RunningGroup, free_counts, place

REGROUP_GAIN_S = 60.0
"""A job begins anew where it ends so much sooner; the start of its new group takes part of it."""
EFFICIENCY = 0.7
"""Of added ranks: windows do not divide evenly among them."""


@dataclass(frozen=True, kw_only=True)
class Regrouping:
    """A job that has `now` ranks and should go on with `ranks`."""

    job: str
    ranks: int
    now: int


def jobs_to_regroup(
    nodes: Sequence[Node], running: Iterable[RunningGroup], gain_s: float = REGROUP_GAIN_S
) -> list[Regrouping]:
    """The running jobs that end `gain_s` sooner on more of the free slots.

    Each at least doubles its ranks, so that a job begins anew a few times at most; what placement would give
    them all is asked of placement itself.
    """
    groups = {group.job: group for group in running}
    chosen = _candidates(nodes, list(groups.values()), gain_s)
    while chosen:
        others = [group for job, group in groups.items() if job not in chosen]
        placed = place(nodes, others, list(chosen.values()), []).placed
        found = [Regrouping(job=each.job, ranks=each.ranks, now=groups[each.job].ranks) for each in placed]
        found = [each for each in found if _gains(groups[each.job], each.ranks, gain_s)]
        if len(found) == len(chosen):
            return found
        # The others stay where they are, so that the slots are dealt out anew.
        chosen = {each.job: chosen[each.job] for each in found}
    return []


def _candidates(
    nodes: Sequence[Node], groups: Sequence[RunningGroup], gain_s: float
) -> dict[str, PendingJob]:
    """The jobs that may gain, those that end last first, as long as free slots of their kind double them."""
    kinds = {node.name: (node.device, node.numerics) for node in nodes}
    free_of = free_counts(nodes, groups)
    free = Counter[tuple[str, str]]()
    for name, count in free_of.items():
        free[kinds[name]] += count
    found = {}
    for group in sorted(groups, key=lambda group: (-(group.ends_in or 0.0), group.job)):
        now, kind = group.ranks, kinds.get(next(iter(group.slots), ""))
        if kind is None or group.anew is None:
            continue
        room = min(free[kind], _free_with(group.anew.tags, kind, nodes, free_of))
        if not 0 < now <= room:
            continue
        if _gains(group, min(group.anew.most, now + room), gain_s):
            free[kind] -= now
            found[group.job] = group.anew
    return found


def _free_with(
    tags: frozenset[str], kind: tuple[str, str], nodes: Sequence[Node], free: Mapping[str, int]
) -> int:
    """The free slots of the nodes of a kind that have some tags."""
    suitable = (node.name for node in nodes if (node.device, node.numerics) == kind and tags <= node.tags)
    return sum(free[name] for name in suitable)


def ends_in_with(group: RunningGroup, ranks: int) -> float:
    """Seconds until a group would end with so many ranks."""
    return (group.ends_in or 0.0) * group.ranks / (group.ranks + EFFICIENCY * (ranks - group.ranks))


def _gains(group: RunningGroup, ranks: int, gain_s: float) -> bool:
    """Whether a group ends so much sooner on so many ranks, twice its own or more."""
    sooner = (group.ends_in or 0.0) - ends_in_with(group, ranks)
    return ranks >= 2 * group.ranks and sooner >= gain_s
