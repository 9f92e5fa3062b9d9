"""Which running groups are given free slots of their nodes, and which give them back when others wait. Pure.

A group takes ranks in between two steps (`render.launch.added_ranks`), so it loses nothing by it. What it was
placed with it keeps until it ends; slots that it was given later are lent.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.db.records import QueueRules
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import Node, RunningGroup, free_counts, place
from jobs.scheduler.regrouping import ends_in_with

GROW_SHARE = 1 / 3
"""Of what a job has to gain that begins anew: a group that grows loses no time."""
JOINED_DEVICE = "cpu"
"""Ranks of other nodes join groups on this device. NCCL keeps the network interface that it has begun with,
which is the loopback in a group of one node."""
Slots = Mapping[str, Mapping[str, int]]
"""Numbers of slots by job and node."""


@dataclass(frozen=True, kw_only=True)
class ElasticGroup:
    """What is known of a running group that takes slots, beside its `RunningGroup`."""

    takes_nodes: bool = False
    """Whether ranks of other nodes may join it."""
    nodes: frozenset[str] = frozenset()
    """Those that are part of it, or have been."""
    takes_more: frozenset[str] = frozenset()
    """The nodes on which it does."""
    lent: Mapping[str, int]
    """By node: slots that it may be asked to give back."""
    returning: Mapping[str, int]
    """By node: slots that it is giving back."""


def slots_to_give(
    nodes: Sequence[Node],
    running: Iterable[RunningGroup],
    elastic: Mapping[str, ElasticGroup],
    gain_s: float,
) -> Slots:
    """The free slots for each group, one after another for the group that would end last."""
    groups = {group.job: group for group in running}
    free = free_counts(nodes, groups.values())
    given: dict[str, Counter[str]] = {}
    last = [(-(group.ends_in or 0.0), job) for job, group in groups.items() if _may_grow(group, elastic)]
    heapq.heapify(last)
    while last:
        _, job = heapq.heappop(last)
        group, own = groups[job], given.get(job, Counter[str]())
        ranks = group.ranks + own.total()
        usable = sorted(name for name in elastic[job].takes_more if free[name] > 0)
        if not usable or group.anew is None or ranks >= group.anew.most:
            continue
        node = max(usable, key=lambda name: free[name])
        free[node] -= 1
        given[job] = own + Counter([node])
        heapq.heappush(last, (-ends_in_with(group, ranks + 1), job))
    return {
        job: own
        for job, own in given.items()
        if (groups[job].ends_in or 0.0) - ends_in_with(groups[job], groups[job].ranks + own.total()) >= gain_s
    }


def nodes_to_add(
    nodes: Sequence[Node],
    running: Iterable[RunningGroup],
    elastic: Mapping[str, ElasticGroup],
    gain_s: float,
) -> Slots:
    """One more node for each group that would end so much sooner with it, and as many of its free slots as
    the group can use; for the group that would end last first."""
    groups = list(running)
    free, found = free_counts(nodes, groups), dict[str, dict[str, int]]()
    known = {node.name: node for node in nodes}
    for group in sorted(groups, key=lambda group: (-(group.ends_in or 0.0), group.job)):
        own = known.get(next(iter(group.slots), ""))
        if own is None or group.anew is None or not _may_grow(group, elastic):
            continue
        if not elastic[group.job].takes_nodes or own.device != JOINED_DEVICE:
            continue
        usable = [node for node in nodes if free[node.name] > 0 and _suits(node, own, group.anew)]
        usable = [node for node in usable if node.name not in elastic[group.job].nodes]
        node = max(usable, key=lambda node: free[node.name], default=None)
        if node is None:
            continue
        count = min(free[node.name], group.anew.most - group.ranks)
        if count > 0 and (group.ends_in or 0.0) - ends_in_with(group, group.ranks + count) >= gain_s:
            free[node.name] -= count
            found[group.job] = {node.name: count}
    return found


def slots_to_ask_back(
    nodes: Sequence[Node],
    running: Iterable[RunningGroup],
    pending: Sequence[PendingJob],
    rules: Sequence[QueueRules],
    queued_s: float,
    elastic: Mapping[str, ElasticGroup],
) -> Slots:
    """The lent slots that the placement would give to waiting jobs if they were free."""
    groups = list(running)
    if not pending or not any(each.lent for each in elastic.values()):
        return {}
    without = [_without_lent(group, elastic.get(group.job)) for group in groups]
    missing = Counter[str]()
    for placed in place(nodes, without, pending, rules, queued_s).placed:
        missing.update(placed.slots)
    missing.subtract(free_counts(nodes, groups))
    for each in elastic.values():
        missing.subtract(each.returning)
    found: dict[str, dict[str, int]] = {}
    for group in sorted(groups, key=lambda group: (group.ends_in or 0.0, group.job)):
        lent = elastic[group.job].lent if group.job in elastic else {}
        for name, count in lent.items():
            back = min(count, missing[name])
            if back > 0:
                missing[name] -= back
                found.setdefault(group.job, {})[name] = back
    return found


def _suits(node: Node, own: Node, job: PendingJob) -> bool:
    """Whether ranks of a node can render with those of another one. More ranks need less memory each."""
    same = (node.device, node.numerics) == (own.device, own.numerics)
    return same and job.tags <= node.tags and node.has_memory(job.memory[0][1] if job.memory else None)


def _may_grow(group: RunningGroup, elastic: Mapping[str, ElasticGroup]) -> bool:
    return group.job in elastic and group.anew is not None and group.ends_in is not None


def _without_lent(group: RunningGroup, elastic: ElasticGroup | None) -> RunningGroup:
    if elastic is None:
        return group
    kept = Counter(group.slots)
    kept.subtract(elastic.lent)
    kept.subtract(elastic.returning)
    return replace(group, slots=dict(kept))
