"""Placement: which pending jobs start now, and on which slots. Pure; the dispatcher carries it out.

Groups are placed completely or not at all (gang scheduling), so two groups never each hold half of what the
other needs. The first job that does not fit gets a reservation: its nodes accept no job that would run past
the start of the reservation (backfill after Lifka 1995, EASY), so small jobs cannot starve a large one.

A job that may have any number of ranks gets the share of the free slots that its work has among all jobs that
could start now: more ranks are less efficient, and slots that one job takes are slots that others wait for.
It gets more where it would else be at work when all others are done, but not at the cost of another owner.

Times are in seconds. Nothing here reads the clock or the database.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.db.records import PlacedGroup, QueueRules
from jobs.scheduler.free_slots import FreeSlots
from jobs.scheduler.pending_jobs import GroupSize, PendingJob, Shape, WaitingJobs, long_jobs_first

SPREAD_S = 5.0
"""What it costs to form a group across nodes: a job whose time is known spreads where it gains more."""
IN_TIME = 0.8
"""Of the ranks with which a job would end together with all others: the end is not known as well, and more
ranks are less efficient."""
AGEING_S = 3600.0
"""A job gains one point of priority for every so many seconds of waiting."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine that runs ranks. `slots` counts its GPUs (or CPU ranks)."""

    name: str
    slots: int
    device: str = "cpu"
    numerics: str = ""
    """Identity of what decides bits, see `render.numerics`; "" if unknown."""
    vram_bytes: int | None = None
    """Memory of each slot; None if unknown, then nothing is refused."""
    tags: frozenset[str] = frozenset()
    maintenance: tuple[float, float] | None = None
    """Seconds until its next maintenance begins and ends; None without any."""

    def has_memory(self, memory_bytes: int | None) -> bool:
        """True if a slot has room for a rank that needs so many bytes."""
        return memory_bytes is None or self.vram_bytes is None or memory_bytes <= self.vram_bytes


@dataclass(frozen=True, kw_only=True)
class RunningGroup:
    """A group that holds slots now. `ends_in` is the estimated remaining time, None without an estimate."""

    job: str
    owner: str
    queue: str
    slots: dict[str, int]
    ends_in: float | None = None
    anew: PendingJob | None = None
    """What is left of its job if the group ends; None if it must not end now."""

    @property
    def ranks(self) -> int:
        """Its slots; 0 for an image that shares the slot of another one."""
        return sum(self.slots.values())


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The groups to start, and the reservation: the job and the nodes that are kept for it."""

    placed: tuple[PlacedGroup, ...]
    reserved_for: str | None = None
    reserved: frozenset[str] = frozenset()


def free_counts(nodes: Sequence[Node], groups: Iterable[RunningGroup]) -> Counter[str]:
    """By node: slots that no group holds; below 0 where groups hold more than it has now."""
    free = Counter({node.name: node.slots for node in nodes})
    for group in groups:
        free.subtract({name: count for name, count in group.slots.items() if name in free})
    return free


def fits(nodes: Sequence[Node], job: PendingJob) -> bool:
    """True if a job fits on these nodes while nothing else runs."""
    return _FarmState(nodes, [], {}).could_ever_fit(job)


def place(
    nodes: Sequence[Node],
    running: Iterable[RunningGroup],
    pending: Iterable[PendingJob],
    queues: Iterable[QueueRules],
    queued_s: float = 0.0,
) -> Decision:
    """Decide once, for the current state of the farm.

    `pending` are the queued jobs that are considered; `queued_s` are the slot seconds of all queued ones, if
    there are more.
    """
    state = _FarmState(nodes, list(running), {queue.name: queue for queue in queues})
    candidates = list(pending)
    queued_s = max(queued_s, sum(job.slot_seconds or 0.0 for job in candidates))
    left_s = queued_s + state.running_s
    candidates = long_jobs_first(candidates, left_s, state.slots)
    state.all_end_in = left_s / max(1, state.slots)
    waiting = WaitingJobs(candidates, state.order)
    placed: list[PlacedGroup] = []
    reserved_for: str | None = None
    reserved: frozenset[str] = frozenset()
    while waiting and (state.any_free or reserved_for is None):
        job = waiting.pop()
        if not state.may_start(job):
            continue
        slots = state.fit(job, state.share(job, waiting), reserved=reserved)
        if slots is not None:
            state.take(job, slots)
            placed.append(PlacedGroup(job=job.job, slots=slots))
        elif reserved_for is None and state.could_ever_fit(job):
            reserved_for, reserved = job.job, state.reserve(job)
    return Decision(placed=tuple(placed), reserved_for=reserved_for, reserved=reserved)


class _FarmState:
    """The slots of the farm, updated with each placement."""

    def __init__(
        self, nodes: Sequence[Node], running: list[RunningGroup], queues: dict[str, QueueRules]
    ) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._running = running
        self._queues = queues
        self._free = {node.name: node.slots for node in nodes}
        self._free_by_tags: dict[frozenset[str], int] = {frozenset(): self.slots}
        """Of nodes that have these tags; filled by `free_with`, kept up to date by `take`."""
        self._used: dict[tuple[str, str], int] = {}
        self._groups: dict[str, int] = {}
        self.all_end_in = 0.0
        """Seconds that all slots need for everything that is left, as far as it is known."""
        self._by_need: dict[Any, list[tuple[FreeSlots, frozenset[str], GroupSize]]] = {}
        """Of jobs that need the same: the free slots of each choice of nodes, kept up to date by `take`."""
        self._wait: dict[str, float | None] = {}
        """Seconds until a reserved node is needed; None if unknown."""
        for group in running:
            self._account(group.queue, group.owner, group.slots)

    def order(self, job: PendingJob) -> tuple[float, float, float, str]:
        """Sort key: priority with ageing, then the owner with the least weighted use, then waiting time."""
        weight = self._queue(job).shares.get(job.owner, 1.0)
        share = self._used.get((job.queue, job.owner), 0) / weight
        points = job.priority + job.waited // AGEING_S
        return -points, share, -job.waited, job.job

    @property
    def slots(self) -> int:
        return sum(node.slots for node in self._nodes.values())

    @property
    def running_s(self) -> float:
        """Slot seconds that the running groups still need, as far as they are known."""
        return sum((group.ends_in or 0.0) * group.ranks for group in self._running)

    @property
    def any_free(self) -> bool:
        return self.free_with(frozenset()) > 0

    def free_with(self, tags: frozenset[str]) -> int:
        """The free slots of the nodes that have these tags."""
        if tags not in self._free_by_tags:
            suitable = (name for name, node in self._nodes.items() if tags <= node.tags)
            self._free_by_tags[tags] = sum(max(0, self._free[name]) for name in suitable)
        return self._free_by_tags[tags]

    def may_start(self, job: PendingJob) -> bool:
        """True if the queue is open and below its limit."""
        return self._queue(job).accepts(self._groups.get(job.queue, 0))

    def could_ever_fit(self, job: PendingJob) -> bool:
        """True if it fits while nothing else runs."""
        return any(self._is_large_enough(*each) for each in self._eligible(job, job.sizes))

    def share(self, job: PendingJob, waiting: WaitingJobs) -> int:
        """The ranks that a job may have: all free slots if nobody waits, else its share by work, but never
        fewer than `least`. Of the `waiting` jobs those of a lower priority do not count, and no more of a
        queue than its limit allows."""
        if job.least == job.most:
            return job.most
        others = waiting.startable(job.priority, self.free_with, self._room_beside(job))
        share = self._share_among(job, others, self.free_with(frozenset()))
        if job.tags:
            rivals = [(other, count) for other, count in others if other.tags >= job.tags]
            share = min(share, self._share_among(job, rivals, self.free_with(job.tags)))
        if not waiting.has_others_than(job.owner):
            share = max(share, min(self._ranks_to_end_in_time(job), self.free_with(job.tags)))
        return max(job.least, min(job.most, share))

    def _ranks_to_end_in_time(self, job: PendingJob) -> int:
        """The ranks with which a job ends about when all slots are done with everything that is left."""
        if not job.slot_seconds or not self.all_end_in:
            return 0
        return math.ceil(IN_TIME * job.slot_seconds / self.all_end_in)

    def _share_among(self, job: PendingJob, others: list[tuple[Shape, int]], free: int) -> int:
        """What is left of some free slots when others have their shares by work; those that need tags get no
        more than their nodes have."""
        total = job.work + sum(other.work * count for other, count in others)
        taken: dict[frozenset[str], float] = {}
        for other, count in others:
            slots = min(other.most, free * other.work / total) * count
            taken[other.tags] = taken.get(other.tags, 0.0) + slots
        return int(free - sum(min(slots, self.free_with(tags)) for tags, slots in taken.items()) + 1e-9)

    def _room_beside(self, job: PendingJob) -> dict[str, int]:
        """How many groups each queue with a limit, or a closed one, may start beside this job's."""
        groups = self._groups | {job.queue: self._groups.get(job.queue, 0) + 1}
        return {
            name: 0 if not queue.open or queue.limit is None else max(0, queue.limit - groups.get(name, 0))
            for name, queue in self._queues.items()
            if not queue.open or queue.limit is not None
        }

    def fit(self, job: PendingJob, share: int, reserved: frozenset[str]) -> dict[str, int] | None:
        """Free slots for the whole group of up to `share` ranks on as few nodes as possible, or None. More
        than `share` only where memory asks for it."""
        eligible = self._free_slots(job)
        for free, size in eligible:
            if size.least <= share and (slots := self._fit_on(job, size, share, free, reserved)):
                return slots
        for free, size in reversed(eligible):
            if size.least > share and (slots := self._fit_on(job, size, size.least, free, reserved)):
                return slots
        return None

    def _free_slots(self, job: PendingJob) -> list[tuple[FreeSlots, GroupSize]]:
        """The free slots of the candidate nodes; those of jobs that need the same are looked up once."""
        key = (job.least, job.most, job.memory, job.avoid, job.tags)
        if key not in self._by_need:
            self._by_need[key] = [
                (FreeSlots({name: self._free[name] for name in names}), frozenset(names), size)
                for names, size in self._eligible(job, job.sizes)
            ]
        return [(free, size) for free, _, size in self._by_need[key]]

    def _fit_on(
        self, job: PendingJob, size: GroupSize, share: int, free: FreeSlots, reserved: frozenset[str]
    ) -> dict[str, int] | None:
        """Nodes whose maintenance would begin before the job ends are left out; the others are asked again,
        since a group that is smaller takes longer."""
        left_out = frozenset[str]()
        while (slots := self._slots_on(job, size, share, free, reserved, left_out)) is not None:
            ranks = sum(slots.values())
            late = {name for name in slots if self._meets_maintenance(job, name, ranks)}
            if not late:
                break
            left_out |= late
        return slots

    def _slots_on(
        self,
        job: PendingJob,
        size: GroupSize,
        share: int,
        free: FreeSlots,
        reserved: frozenset[str],
        left_out: frozenset[str],
    ) -> dict[str, int] | None:
        def may_use(name: str) -> bool:
            return name not in left_out and (name not in reserved or self._ends_in_time(job, name))

        wanted = min(size.most, share)
        # Best is one node that holds all, with the fewest free slots; else the emptiest nodes, so the fewest.
        single = free.smallest(wanted, may_use)
        if single is not None:
            return {single: wanted}
        slots: dict[str, int] = {}
        for name, count in free.emptiest_first(may_use):
            slots[name] = min(count, wanted - sum(slots.values()))
            if sum(slots.values()) == wanted:
                break
        ranks = sum(slots.values())
        if ranks < size.least:
            return None
        emptiest = next(iter(slots))
        alone = slots[emptiest]
        if alone >= size.least and not _spreading_pays(job, alone, ranks):
            return {emptiest: alone}
        return slots

    def reserve(self, job: PendingJob) -> frozenset[str]:
        """The nodes to reserve for a job that does not fit: those that become free first."""
        fewest_first = self._eligible(job, job.sizes[::-1])
        large, size = next(each for each in fewest_first if self._is_large_enough(*each))
        free_in = self._free_in(job)
        soonest = sorted(large, key=lambda name: (free_in[name], name))
        chosen: list[str] = []
        while sum(self._nodes[name].slots for name in chosen) < size.least:
            chosen.append(soonest[len(chosen)])
        until = max(free_in[name] for name in chosen)
        self._wait = dict.fromkeys(chosen, None if until == float("inf") else until)
        return frozenset(chosen)

    def take(self, job: PendingJob, slots: dict[str, int]) -> None:
        self._account(job.queue, job.owner, slots)
        self._running.append(
            RunningGroup(
                job=job.job, owner=job.owner, queue=job.queue, slots=slots, ends_in=job.estimated_seconds
            )
        )

    def _account(self, queue: str, owner: str, slots: dict[str, int]) -> None:
        for name, count in slots.items():
            if name in self._free:
                self._set_free(name, self._free[name] - count)
        self._used[queue, owner] = self._used.get((queue, owner), 0) + sum(slots.values())
        self._groups[queue] = self._groups.get(queue, 0) + 1

    def _set_free(self, name: str, count: int) -> None:
        for choices in self._by_need.values():
            for free, names, _ in choices:
                if name in names:
                    free.change(name, self._free[name], count)
        added = max(0, count) - max(0, self._free[name])
        for tags in self._free_by_tags:
            if tags <= self._nodes[name].tags:
                self._free_by_tags[tags] += added
        self._free[name] = count

    def _queue(self, job: PendingJob) -> QueueRules:
        return self._queues.get(job.queue) or QueueRules(name=job.queue)

    def _eligible(self, job: PendingJob, sizes: list[GroupSize]) -> list[tuple[list[str], GroupSize]]:
        """The candidate nodes by kind (GPUs first) and group size: those with the job's tags whose slots have
        enough memory for a rank. A group never mixes devices or numerics: their last bits differ."""
        kinds: dict[tuple[str, str], list[Node]] = {}
        for node in self._nodes.values():
            if node.name not in job.avoid and job.tags <= node.tags:
                kinds.setdefault((node.device, node.numerics), []).append(node)
        return [
            ([node.name for node in kinds[kind] if node.has_memory(size.memory_bytes)], size)
            for kind in sorted(kinds, key=lambda kind: (kind[0] == "cpu", kind))
            for size in sizes
        ]

    def _is_large_enough(self, names: list[str], size: GroupSize) -> bool:
        return sum(self._nodes[name].slots for name in names) >= size.least

    def _free_in(self, job: PendingJob) -> dict[str, float]:
        """Seconds until all slots of each node are free for a job, its maintenance included."""
        found = dict.fromkeys(self._nodes, 0.0)
        for group in self._running:
            ends_in = float("inf") if group.ends_in is None else group.ends_in
            for name, count in group.slots.items():
                if count and name in found:
                    found[name] = max(found[name], ends_in)
        for name, node in self._nodes.items():
            if node.maintenance is not None and self._meets_maintenance(job, name, job.least, found[name]):
                found[name] = max(found[name], node.maintenance[1])
        return found

    def _meets_maintenance(self, job: PendingJob, name: str, ranks: int, starts_in: float = 0.0) -> bool:
        """Whether it is expected to run, on so many ranks, when maintenance of a node begins."""
        planned = self._nodes[name].maintenance
        if planned is None:
            return False
        takes = 0.0 if job.slot_seconds is None else job.slot_seconds / ranks
        return starts_in + takes >= planned[0]

    def _ends_in_time(self, job: PendingJob, name: str) -> bool:
        until = self._wait[name]
        return until is not None and job.estimated_seconds is not None and job.estimated_seconds <= until


def _spreading_pays(job: PendingJob, alone: int, ranks: int) -> bool:
    """Whether a group of `ranks` on several nodes ends earlier than one of `alone` on one node."""
    if job.estimated_seconds is None:
        return True
    slot_seconds = job.estimated_seconds * job.least
    return slot_seconds / alone - slot_seconds / ranks > SPREAD_S
