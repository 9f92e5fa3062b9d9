"""Placement: which waiting jobs start now, and on which slots. Pure; the dispatcher carries it out.

Groups are placed whole or not at all, so two gangs can never each hold half of what the other needs. The
first job that does not fit gets a reservation: its nodes take no work that would outlast the wait for it
(conservative backfill, after Lifka 1995 and Feitelson's EASY), so small jobs cannot starve a large one.

Times are in seconds. Nothing here asks for the time or for the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

AGEING_S = 3600.0
"""A job gains one point of priority for every so many seconds that it waits."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine that takes work. `slots` counts GPUs (or CPU ranks)."""

    name: str
    slots: int
    device: str = "cpu"
    """Kind of its slots. A group never mixes them: their last bits differ."""
    vram_bytes: int | None = None
    """Memory of each slot; None when it is not known, and then nothing is refused for it."""

    def takes(self, memory_bytes: int | None) -> bool:
        """Has a slot room for a rank that needs so much?"""
        return memory_bytes is None or self.vram_bytes is None or memory_bytes <= self.vram_bytes


@dataclass(frozen=True, kw_only=True)
class RunningGroup:
    """What holds slots now. `ends_in` is an estimate, None when there is none."""

    job: str
    owner: str
    queue: str
    slots: dict[str, int]
    ends_in: float | None = None


@dataclass(frozen=True, kw_only=True)
class PendingJob:
    """A waiting job. `least` to `most` ranks all give the same picture, so fewer nodes will do at need."""

    job: str
    owner: str = ""
    queue: str = "default"
    priority: int = 50
    waited: float = 0.0
    least: int = 1
    most: int = 1
    memory: tuple[tuple[int, int], ...] = ()
    """(ranks, bytes), ascending: from so many ranks on each needs so much, the loaded model included. Empty
    when it is not known, and then nothing is refused for it."""
    lasts: float | None = None
    avoid: frozenset[str] = frozenset()
    """Nodes that this job has failed on too often."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"job {self.job} wants {self.least} to {self.most} ranks")

    @property
    def sizes(self) -> list[Size]:
        """The sizes of group in which it may run, the largest first: each rank's need is the same in one."""
        known = self.memory or ((self.least, None),)
        begins = [(max(ranks, self.least), bytes_) for ranks, bytes_ in known if ranks <= self.most]
        ends = [*(least - 1 for least, _ in begins[1:]), self.most]
        sizes = [
            Size(least=least, most=most, memory_bytes=bytes_)
            for (least, bytes_), most in zip(begins, ends, strict=True)
            if least <= most
        ]
        return sizes[::-1]


@dataclass(frozen=True, kw_only=True)
class Size:
    """From `least` to `most` ranks, each of which needs `memory_bytes` (None: unknown)."""

    least: int
    most: int
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A queue's rules. `limit` is the most groups at once, None without one."""

    name: str
    limit: int | None = None
    open: bool = True
    shares: dict[str, float] = field(default_factory=dict)
    """Weight of each owner; 1 for one who is not named."""

    def takes(self, groups: int) -> bool:
        """Is it open, with room for one more than so many groups?"""
        return self.open and (self.limit is None or groups < self.limit)


@dataclass(frozen=True, kw_only=True)
class PlacedGroup:
    """A whole group: slots per node, the first node hosting the rendezvous."""

    job: str
    slots: dict[str, int]

    @property
    def ranks(self) -> int:
        return sum(self.slots.values())


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to start, and for whom nodes are being kept free."""

    placed: tuple[PlacedGroup, ...]
    reserved_for: str | None = None
    reserved: frozenset[str] = frozenset()


def fits(nodes: Sequence[Node], want: PendingJob) -> bool:
    """Would a job fit on these nodes if nothing else ran?"""
    return _Farm(nodes, [], {}).could_ever_fit(want)


def place(
    nodes: Sequence[Node],
    running: Iterable[RunningGroup],
    wants: Iterable[PendingJob],
    queues: Iterable[Queue],
) -> Decision:
    """Decide once, for the farm as it is."""
    farm = _Farm(nodes, list(running), {queue.name: queue for queue in queues})
    waiting = farm.lines(wants)
    placed: list[PlacedGroup] = []
    reserved_for: str | None = None
    reserved: frozenset[str] = frozenset()
    while waiting and (farm.any_free or reserved_for is None):
        # Anew each time: with each placement its owner's share grows, and others may come first.
        line = min(waiting, key=lambda line: farm.order(line[-1]))
        want = line.pop()
        if not line:
            waiting.remove(line)
        if not farm.may_start(want):
            continue
        slots = farm.fit(want, kept=reserved)
        if slots is not None:
            farm.take(want, slots)
            placed.append(PlacedGroup(job=want.job, slots=slots))
        elif reserved_for is None and farm.could_ever_fit(want):
            reserved_for, reserved = want.job, farm.reserve(want)
    return Decision(placed=tuple(placed), reserved_for=reserved_for, reserved=reserved)


class _Farm:
    """The slots as they are, and as each placement leaves them."""

    def __init__(self, nodes: Sequence[Node], running: list[RunningGroup], queues: dict[str, Queue]) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._running = running
        self._queues = queues
        self._free = {node.name: node.slots for node in nodes}
        self._used: dict[tuple[str, str], int] = {}
        self._groups: dict[str, int] = {}
        for group in running:
            self._account(group.queue, group.owner, group.slots)
        self._wait: dict[str, float | None] = {}
        """Seconds until a reserved node is needed; None when nobody knows."""

    def order(self, want: PendingJob) -> tuple[float, float, float, str]:
        """Priority with ageing, then the owner who has least for their share, then who has waited longest."""
        weight = self._queue(want).shares.get(want.owner, 1.0)
        share = self._used.get((want.queue, want.owner), 0) / weight
        points = want.priority + want.waited // AGEING_S
        return -points, share, -want.waited, want.job

    def lines(self, wants: Iterable[PendingJob]) -> list[list[PendingJob]]:
        """The jobs of each owner in each queue, the first of each line at its end: as long as their share
        is the same, so is their order."""
        found: dict[tuple[str, str], list[PendingJob]] = {}
        for want in sorted(wants, key=self.order, reverse=True):
            found.setdefault((want.queue, want.owner), []).append(want)
        return list(found.values())

    @property
    def any_free(self) -> bool:
        return any(count > 0 for count in self._free.values())

    def may_start(self, want: PendingJob) -> bool:
        """Is the queue open, with room under its limit?"""
        return self._queue(want).takes(self._groups.get(want.queue, 0))

    def could_ever_fit(self, want: PendingJob) -> bool:
        """Would it fit if nothing else ran?"""
        return any(self._holds(*each) for each in self._eligible(want, want.sizes))

    def fit(self, want: PendingJob, kept: frozenset[str]) -> dict[str, int] | None:
        """Free slots for the whole group on as few nodes as can be, or None."""
        for names, size in self._eligible(want, want.sizes):
            slots = self._fit_on(size, [name for name in names if self._may_use(want, name, kept)])
            if slots is not None:
                return slots
        return None

    def _may_use(self, want: PendingJob, name: str, kept: frozenset[str]) -> bool:
        return self._free[name] > 0 and (name not in kept or self._ends_in_time(want, name))

    def _fit_on(self, size: Size, names: list[str]) -> dict[str, int] | None:
        if sum(self._free[name] for name in names) < size.least:
            return None
        # One node that holds all is best, the tightest of them; else the emptiest nodes, which are fewest.
        single = [name for name in names if self._free[name] >= size.most]
        if single:
            return {min(single, key=lambda name: (self._free[name], name)): size.most}
        slots: dict[str, int] = {}
        left = size.most
        for name in sorted(names, key=lambda name: (-self._free[name], name)):
            if left == 0:
                break
            slots[name] = min(left, self._free[name])
            left -= slots[name]
        return slots

    def reserve(self, want: PendingJob) -> frozenset[str]:
        """The nodes to keep for a job that waits: those that are free soonest."""
        fewest_first = self._eligible(want, want.sizes[::-1])
        large, size = next(each for each in fewest_first if self._holds(*each))
        soonest = sorted(large, key=lambda name: (self._free_in(name), name))
        chosen: list[str] = []
        while sum(self._nodes[name].slots for name in chosen) < size.least:
            chosen.append(soonest[len(chosen)])
        until = max(self._free_in(name) for name in chosen)
        self._wait = dict.fromkeys(chosen, None if until == float("inf") else until)
        return frozenset(chosen)

    def take(self, want: PendingJob, slots: dict[str, int]) -> None:
        self._account(want.queue, want.owner, slots)
        self._running.append(
            RunningGroup(job=want.job, owner=want.owner, queue=want.queue, slots=slots, ends_in=want.lasts)
        )

    def _account(self, queue: str, owner: str, slots: dict[str, int]) -> None:
        for name, count in slots.items():
            if name in self._free:
                self._free[name] -= count
        self._used[queue, owner] = self._used.get((queue, owner), 0) + sum(slots.values())
        self._groups[queue] = self._groups.get(queue, 0) + 1

    def _queue(self, want: PendingJob) -> Queue:
        return self._queues.get(want.queue) or Queue(name=want.queue)

    def _eligible(self, want: PendingJob, sizes: list[Size]) -> list[tuple[list[str], Size]]:
        """The nodes that could take part, for each kind of device, GPUs first, and each of the sizes: those
        whose slots have room for a rank."""
        kinds: dict[str, list[Node]] = {}
        for node in self._nodes.values():
            if node.name not in want.avoid:
                kinds.setdefault(node.device, []).append(node)
        return [
            ([node.name for node in kinds[kind] if node.takes(size.memory_bytes)], size)
            for kind in sorted(kinds, key=lambda kind: (kind == "cpu", kind))
            for size in sizes
        ]

    def _holds(self, names: list[str], size: Size) -> bool:
        return sum(self._nodes[name].slots for name in names) >= size.least

    def _free_in(self, name: str) -> float:
        """Seconds until all of the node's slots are free."""
        ends = [group.ends_in for group in self._running if group.slots.get(name)]
        return max((float("inf") if end is None else end for end in ends), default=0.0)

    def _ends_in_time(self, want: PendingJob, name: str) -> bool:
        until = self._wait[name]
        return until is not None and want.lasts is not None and want.lasts <= until
