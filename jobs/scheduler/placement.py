"""Placement: which pending jobs start now, and on which slots. Pure; the dispatcher carries it out.

Groups are placed completely or not at all (gang scheduling), so two groups never each hold half of what the
other needs. The first job that does not fit gets a reservation: its nodes accept no job that would run past
the start of the reservation (backfill after Lifka 1995, EASY), so small jobs cannot starve a large one.

A job that may have any number of ranks gets the share of the free slots that its work has among all jobs that
could start now: more ranks are less efficient, and slots that one job takes are slots that others wait for.

Times are in seconds. Nothing here reads the clock or the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.db.records import PlacedGroup, QueueRules

SPREAD_S = 5.0
"""What it costs to form a group across nodes: a job whose time is known spreads where it gains more."""
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


@dataclass(frozen=True, kw_only=True)
class PendingJob:
    """A queued job. Any number of ranks from `least` to `most` gives the same image."""

    job: str
    owner: str = ""
    queue: str = "default"
    priority: int = 50
    waited: float = 0.0
    least: int = 1
    most: int = 1
    memory: tuple[tuple[int, int], ...] = ()
    """(ranks, bytes), ascending: bytes per rank for so many ranks or more, loaded model included. Empty if
    unknown, then nothing is refused."""
    estimated_seconds: float | None = None
    """On `least` ranks."""
    work: float = 1.0
    """What is left to do, in any unit that all jobs share."""
    avoid: frozenset[str] = frozenset()
    """Nodes on which this job has failed too often."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"job {self.job}: {self.least} to {self.most} ranks is not a range")

    @property
    def sizes(self) -> list[GroupSize]:
        """The possible group sizes as ranges of equal memory per rank, largest first."""
        known = self.memory or ((self.least, None),)
        begins = [(max(ranks, self.least), bytes_) for ranks, bytes_ in known if ranks <= self.most]
        ends = [*(least - 1 for least, _ in begins[1:]), self.most]
        sizes = [
            GroupSize(least=least, most=most, memory_bytes=bytes_)
            for (least, bytes_), most in zip(begins, ends, strict=True)
            if least <= most
        ]
        return sizes[::-1]


@dataclass(frozen=True, kw_only=True)
class GroupSize:
    """`least` to `most` ranks that need `memory_bytes` each (None: unknown)."""

    least: int
    most: int
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The groups to start, and the reservation: the job and the nodes that are kept for it."""

    placed: tuple[PlacedGroup, ...]
    reserved_for: str | None = None
    reserved: frozenset[str] = frozenset()


def fits(nodes: Sequence[Node], job: PendingJob) -> bool:
    """True if a job fits on these nodes while nothing else runs."""
    return _FarmState(nodes, [], {}).could_ever_fit(job)


def place(
    nodes: Sequence[Node],
    running: Iterable[RunningGroup],
    pending: Iterable[PendingJob],
    queues: Iterable[QueueRules],
) -> Decision:
    """Decide once, for the current state of the farm."""
    state = _FarmState(nodes, list(running), {queue.name: queue for queue in queues})
    per_owner = state.by_owner(pending)
    placed: list[PlacedGroup] = []
    reserved_for: str | None = None
    reserved: frozenset[str] = frozenset()
    while per_owner and (state.any_free or reserved_for is None):
        # Sorted again each time: every placement raises its owner's share, so another owner may be next.
        candidates = min(per_owner, key=lambda candidates: state.order(candidates[-1]))
        job = candidates.pop()
        if not candidates:
            per_owner.remove(candidates)
        if not state.may_start(job):
            continue
        slots = state.fit(job, state.share(job, per_owner), reserved=reserved)
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
        self._used: dict[tuple[str, str], int] = {}
        self._groups: dict[str, int] = {}
        for group in running:
            self._account(group.queue, group.owner, group.slots)
        self._wait: dict[str, float | None] = {}
        """Seconds until a reserved node is needed; None if unknown."""

    def order(self, job: PendingJob) -> tuple[float, float, float, str]:
        """Sort key: priority with ageing, then the owner with the least weighted use, then waiting time."""
        weight = self._queue(job).shares.get(job.owner, 1.0)
        share = self._used.get((job.queue, job.owner), 0) / weight
        points = job.priority + job.waited // AGEING_S
        return -points, share, -job.waited, job.job

    def by_owner(self, pending: Iterable[PendingJob]) -> list[list[PendingJob]]:
        """The jobs of each owner in each queue, the next one last. The order within a list is fixed: all its
        jobs have the same share."""
        found: dict[tuple[str, str], list[PendingJob]] = {}
        for job in sorted(pending, key=self.order, reverse=True):
            found.setdefault((job.queue, job.owner), []).append(job)
        return list(found.values())

    @property
    def any_free(self) -> bool:
        return any(count > 0 for count in self._free.values())

    def may_start(self, job: PendingJob) -> bool:
        """True if the queue is open and below its limit."""
        return self._queue(job).accepts(self._groups.get(job.queue, 0))

    def could_ever_fit(self, job: PendingJob) -> bool:
        """True if it fits while nothing else runs."""
        return any(self._is_large_enough(*each) for each in self._eligible(job, job.sizes))

    def share(self, job: PendingJob, waiting: Sequence[Sequence[PendingJob]]) -> int:
        """The ranks that a job may have: all free slots if nobody waits, else its share by work, but never
        fewer than `least`. Of the `waiting` jobs (the next one of each list is its last) those of a lower
        priority do not count."""
        if job.least == job.most:
            return job.most
        free = sum(count for count in self._free.values() if count > 0)
        others = self._startable(job, waiting, free)
        total = job.work + sum(other.work for other in others)
        taken = sum(min(other.most, free * other.work / total) for other in others)
        return max(job.least, min(job.most, int(free - taken + 1e-9)))

    def _startable(
        self, job: PendingJob, waiting: Sequence[Sequence[PendingJob]], free: int
    ) -> list[PendingJob]:
        """The other jobs that could start on the free slots, as far as the limits of their queues allow."""
        groups = self._groups | {job.queue: self._groups.get(job.queue, 0) + 1}
        found = []
        for candidates in waiting:
            for other in reversed(candidates):
                if other.priority < job.priority or other.least > free:
                    continue
                count = groups.get(other.queue, 0)
                if self._queue(other).accepts(count):
                    groups[other.queue] = count + 1
                    found.append(other)
        return found

    def fit(self, job: PendingJob, share: int, reserved: frozenset[str]) -> dict[str, int] | None:
        """Free slots for the whole group of up to `share` ranks on as few nodes as possible, or None. More
        than `share` only where memory asks for it."""
        eligible = self._eligible(job, job.sizes)
        for names, size in eligible:
            if size.least <= share and (slots := self._fit_on(job, size, share, names, reserved)):
                return slots
        for names, size in reversed(eligible):
            if size.least > share and (slots := self._fit_on(job, size, size.least, names, reserved)):
                return slots
        return None

    def _may_use(self, job: PendingJob, name: str, reserved: frozenset[str]) -> bool:
        return self._free[name] > 0 and (name not in reserved or self._ends_in_time(job, name))

    def _fit_on(
        self, job: PendingJob, size: GroupSize, share: int, among: list[str], reserved: frozenset[str]
    ) -> dict[str, int] | None:
        names = [name for name in among if self._may_use(job, name, reserved)]
        free = sum(self._free[name] for name in names)
        if free < size.least:
            return None
        wanted = min(size.most, share)
        # Best is one node that holds all, with the fewest free slots; else the emptiest nodes, so the fewest.
        single = [name for name in names if self._free[name] >= wanted]
        if single:
            return {min(single, key=lambda name: (self._free[name], name)): wanted}
        emptiest = sorted(names, key=lambda name: (-self._free[name], name))
        alone = self._free[emptiest[0]]
        if alone >= size.least and not _spreading_pays(job, alone, min(wanted, free)):
            return {emptiest[0]: alone}
        slots: dict[str, int] = {}
        left = wanted
        for name in emptiest:
            if left == 0:
                break
            slots[name] = min(left, self._free[name])
            left -= slots[name]
        return slots

    def reserve(self, job: PendingJob) -> frozenset[str]:
        """The nodes to reserve for a job that does not fit: those that become free first."""
        fewest_first = self._eligible(job, job.sizes[::-1])
        large, size = next(each for each in fewest_first if self._is_large_enough(*each))
        soonest = sorted(large, key=lambda name: (self._free_in(name), name))
        chosen: list[str] = []
        while sum(self._nodes[name].slots for name in chosen) < size.least:
            chosen.append(soonest[len(chosen)])
        until = max(self._free_in(name) for name in chosen)
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
                self._free[name] -= count
        self._used[queue, owner] = self._used.get((queue, owner), 0) + sum(slots.values())
        self._groups[queue] = self._groups.get(queue, 0) + 1

    def _queue(self, job: PendingJob) -> QueueRules:
        return self._queues.get(job.queue) or QueueRules(name=job.queue)

    def _eligible(self, job: PendingJob, sizes: list[GroupSize]) -> list[tuple[list[str], GroupSize]]:
        """The candidate nodes by kind (GPUs first) and group size: those whose slots have enough memory for a
        rank. A group never mixes devices or numerics: their last bits differ."""
        kinds: dict[tuple[str, str], list[Node]] = {}
        for node in self._nodes.values():
            if node.name not in job.avoid:
                kinds.setdefault((node.device, node.numerics), []).append(node)
        return [
            ([node.name for node in kinds[kind] if node.has_memory(size.memory_bytes)], size)
            for kind in sorted(kinds, key=lambda kind: (kind[0] == "cpu", kind))
            for size in sizes
        ]

    def _is_large_enough(self, names: list[str], size: GroupSize) -> bool:
        return sum(self._nodes[name].slots for name in names) >= size.least

    def _free_in(self, name: str) -> float:
        """Seconds until all of the node's slots are free."""
        ends = [group.ends_in for group in self._running if group.slots.get(name)]
        return max((float("inf") if end is None else end for end in ends), default=0.0)

    def _ends_in_time(self, job: PendingJob, name: str) -> bool:
        until = self._wait[name]
        return until is not None and job.estimated_seconds is not None and job.estimated_seconds <= until


def _spreading_pays(job: PendingJob, alone: int, ranks: int) -> bool:
    """Whether a group of `ranks` on several nodes ends earlier than one of `alone` on one node."""
    if job.estimated_seconds is None:
        return True
    slot_seconds = job.estimated_seconds * job.least
    return slot_seconds / alone - slot_seconds / ranks > SPREAD_S
