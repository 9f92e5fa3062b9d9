"""The jobs that wait for slots, as placement sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

LONG_SHARE = 0.1
"""A job is long if it takes this share of the time that all slots need for everything that is left."""
HEAD_START_S = 12 * 3600.0
"""A long job passes those of its priority that have waited up to so many seconds longer: a night."""


@dataclass(frozen=True, kw_only=True)
class GroupSize:
    """`least` to `most` ranks that need `memory_bytes` each (None: unknown)."""

    least: int
    most: int
    memory_bytes: int | None


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
    tags: frozenset[str] = frozenset()
    """Those that each of its nodes must have."""

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

    @property
    def slot_seconds(self) -> float | None:
        """Slot seconds on `least` ranks; None without an estimate."""
        return None if self.estimated_seconds is None else self.estimated_seconds * self.least


class Shape(NamedTuple):
    """What placement distinguishes the other waiting jobs by, when it shares out the free slots."""

    priority: int
    least: int
    most: int
    work: float
    tags: frozenset[str] = frozenset()


class WaitingJobs:
    """The jobs of a round that are still to be placed. `order` gives a job's sort key; the smallest is first.

    A night has thousands of jobs of a few shapes, so they are counted by shape.
    """

    def __init__(self, jobs: Iterable[PendingJob], order: Callable[[PendingJob], Any]) -> None:
        self._order = order
        # The next one last. The order within a list is fixed: all jobs of an owner have the same share.
        self._lists: dict[tuple[str, str], list[PendingJob]] = {}
        self._shapes: dict[str, Counter[Shape]] = {}
        for job in sorted(jobs, key=order, reverse=True):
            self._lists.setdefault((job.queue, job.owner), []).append(job)
            self._shapes.setdefault(job.queue, Counter())[_shape(job)] += 1

    def __bool__(self) -> bool:
        return bool(self._lists)

    def has_others_than(self, owner: str) -> bool:
        """Whether a job of another owner waits."""
        return any(other != owner for _, other in self._lists)

    def pop(self) -> PendingJob:
        """The next job. Every placement raises its owner's share, so another owner may be next each time."""
        key = min(self._lists, key=lambda key: self._order(self._lists[key][-1]))
        job = self._lists[key].pop()
        if not self._lists[key]:
            del self._lists[key]
        self._shapes[job.queue][_shape(job)] -= 1
        return job

    def startable(
        self, priority: int, free: Callable[[frozenset[str]], int], room: dict[str, int]
    ) -> list[tuple[Shape, int]]:
        """The jobs of at least this priority that could start on the free slots, counted by shape.

        `free` tells how many slots are free on nodes with some tags. `room` limits how many of a queue count,
        the first ones; queues that are not in it have no limit.
        """
        found = Counter[Shape]()
        for queue, shapes in self._shapes.items():
            if queue not in room:
                found.update(shapes)
        for queue, most in room.items():
            found.update(_shape(job) for job in islice(self._suitable(queue, priority, free), most))
        return [
            (shape, count)
            for shape, count in found.items()
            if count and shape.priority >= priority and shape.least <= free(shape.tags)
        ]

    def _suitable(
        self, queue: str, priority: int, free: Callable[[frozenset[str]], int]
    ) -> Iterator[PendingJob]:
        for (name, _), jobs in self._lists.items():
            if name == queue:
                suitable = (job for job in reversed(jobs) if job.priority >= priority)
                yield from (job for job in suitable if job.least <= free(job.tags))


def _shape(job: PendingJob) -> Shape:
    return Shape(job.priority, job.least, job.most, job.work, job.tags)


def long_jobs_first(pending: Iterable[PendingJob], left_s: float, slots: int) -> list[PendingJob]:
    """The jobs, of which the long ones seem to have waited longest in their priority.

    Jobs start in the order of their submission. A job that takes a good part of the time that all `slots`
    need for the `left_s` slot seconds of all jobs, running and queued, would then end last and alone. So it
    starts first, the longest of all before the others (longest processing time first, Graham 1969): the small
    ones fill the slots that become free at the end. Jobs that are small beside what is left keep their place.
    """
    jobs = list(pending)
    enough = LONG_SHARE * left_s / slots if slots > 1 else float("inf")
    longest = max((job.estimated_seconds or 0.0 for job in jobs), default=0.0)
    if longest < enough or not longest:
        return jobs
    oldest: dict[int, float] = {}
    for job in jobs:
        oldest[job.priority] = max(job.waited, oldest.get(job.priority, 0.0))
    return [
        job
        if (job.estimated_seconds or 0.0) < enough
        else _with_head_start(job, oldest[job.priority], longest)
        for job in jobs
    ]


def _with_head_start(job: PendingJob, oldest: float, longest: float) -> PendingJob:
    """A long job that has waited as long as the oldest of its priority, and up to a second more by length."""
    longer = (job.estimated_seconds or 0.0) / longest
    return replace(job, waited=max(job.waited, min(oldest, job.waited + HEAD_START_S) + longer))
