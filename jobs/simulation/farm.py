"""The simulated farm: nodes, queues, pending jobs and running groups, and what `place` is asked with them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.db.maintenance import Maintenance, seconds_until
from jobs.db.records import QueueRules
from jobs.db.time_window import TimeWindow
from jobs.scheduler.candidates import Room, most_candidates, most_of_the_longest
from jobs.scheduler.growing import GROW_SHARE, ElasticGroup, Slots, slots_to_ask_back, slots_to_give
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import AGEING_S, Decision, Node, RunningGroup, place
from jobs.scheduler.regrouping import REGROUP_GAIN_S, jobs_to_regroup
from jobs.simulation.workload import Workload

Source = tuple[str, str, int, frozenset[str]]
"""Queue, owner, priority and tags of a job."""


@dataclass(kw_only=True)
class Job:
    """One job of a simulation. Times are in seconds since the epoch of the simulated clock."""

    name: str
    workload: Workload
    owner: str
    queue: str
    priority: int
    created: float
    least: int
    most: int
    memory: tuple[tuple[int, int], ...] = ()
    tags: frozenset[str] = frozenset()
    """Those that each of its nodes must have."""
    done: float = 0.0
    """Share of the work that a checkpoint holds."""
    started: float | None = None
    ended: float | None = None

    @property
    def source(self) -> Source:
        """What the scheduler tells queued jobs apart by, when it takes the first ones of each."""
        return self.queue, self.owner, self.priority, self.tags

    def remaining_s(self, ranks: int) -> float:
        """Time for the rest of the image."""
        return self.workload.seconds(ranks) * (1 - self.done)


@dataclass(kw_only=True)
class Group:
    """A running group. It renders from `begins`, after its start, to `ends`."""

    job: Job
    slots: Counter[str]
    """Those that it holds, lent ones included."""
    own: Mapping[str, int]
    """Those that it was placed with."""
    begins: float
    ends: float = field(init=False)
    joining: Counter[str] = field(default_factory=Counter)
    """By node: ranks on lent slots that still load the model."""
    lost: bool = False

    def __post_init__(self) -> None:
        self.rest()

    @property
    def held(self) -> int:
        """Slots that it holds."""
        return self.slots.total()

    @property
    def ranks(self) -> int:
        """Ranks that render."""
        return self.held - self.joining.total()

    @property
    def lent(self) -> Counter[str]:
        """Slots that it has beside its own ones."""
        return self.slots - Counter(self.own)

    def keep(self, rendered_s: float) -> None:
        """Count the work of so many seconds as done."""
        left = self.job.remaining_s(self.ranks)
        if left > 0:
            self.job.done += (1 - self.job.done) * min(1.0, rendered_s / left)

    def advance(self, moment: float) -> None:
        """Count the work until now as done, before the number of ranks changes."""
        self.keep(max(0.0, moment - self.begins))
        self.begins = max(self.begins, moment)

    def rest(self) -> None:
        """Set `ends` from what is left."""
        self.ends = self.begins + self.job.remaining_s(self.ranks)


@dataclass(kw_only=True)
class Queue:
    """A queue's rules."""

    rules: QueueRules
    priority: int = 50
    window: TimeWindow | None = None

    def rules_at(self, moment: float) -> QueueRules:
        """The rules with the state of the time window."""
        is_open = self.window is None or self.window.is_open(moment)
        return replace(self.rules, open=is_open)


class QueuedJobs:
    """The queued jobs of one source, in two orders; there may be a hundred thousand."""

    def __init__(self) -> None:
        self._oldest: list[tuple[float, str, Job]] = []
        self._longest: list[tuple[float, str, Job]] = []

    def add(self, job: Job) -> None:
        insort(self._oldest, (job.created, job.name, job))
        insort(self._longest, (-job.remaining_s(1), job.name, job))

    def remove(self, job: Job) -> None:
        del self._oldest[bisect_left(self._oldest, (job.created, job.name, job))]
        del self._longest[bisect_left(self._longest, (-job.remaining_s(1), job.name, job))]

    def oldest(self, most: int) -> list[Job]:
        return [job for _, _, job in self._oldest[:most]]

    def longest(self, most: int) -> list[Job]:
        return [job for _, _, job in self._longest[:most]]


@dataclass(kw_only=True)
class SimulatedFarm:
    """The state between two events."""

    nodes: dict[str, Node]
    queues: dict[str, Queue]
    maintenance: Mapping[str, Sequence[Maintenance]] = field(default_factory=dict)
    """By node."""
    down: set[str] = field(default_factory=set)
    groups: dict[str, Group] = field(default_factory=dict)
    """By job name; changed by `begin` and `end`."""
    _held: Counter[str] = field(default_factory=Counter)
    """Slots of each node that groups hold, kept up to date: a farm may have thousands of groups."""
    _queued: dict[Source, QueuedJobs] = field(default_factory=dict)
    _queued_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Slot seconds of the queued jobs, by queue."""
    _asked: tuple[list[PendingJob], list[QueueRules], float] = field(default=([], [], 0.0))
    """What the last `place` was asked with."""

    def add(self, job: Job) -> None:
        """Queue a job, for the first time or again."""
        self._queued.setdefault(job.source, QueuedJobs()).add(job)
        self._queued_s[job.queue] += job.remaining_s(1)

    def begin(self, group: Group) -> None:
        """A group of a queued job takes its slots."""
        job = group.job
        self._queued[job.source].remove(job)
        self._queued_s[job.queue] -= job.remaining_s(1)
        self.groups[job.name] = group
        self._held.update(group.slots)

    def end(self, group: Group) -> None:
        """A group gives them back."""
        del self.groups[group.job.name]
        self._held.subtract(group.slots)

    def lend(self, group: Group, slots: Mapping[str, int]) -> None:
        """A group takes free slots, whose ranks join it later."""
        group.slots.update(slots)
        group.joining.update(slots)
        self._held.update(slots)

    def take_back(self, group: Group, slots: Mapping[str, int]) -> None:
        """A group gives lent slots back, first those whose ranks have not joined it."""
        group.slots -= Counter(slots)
        group.joining -= Counter(slots)
        self._held.subtract(slots)

    def free_slots(self, nodes: Iterable[str]) -> dict[str, int]:
        """The slots of some nodes that no group holds."""
        return {name: self.nodes[name].slots - self._held[name] for name in nodes}

    def place(self, moment: float) -> Decision:
        """A round of the scheduler: which queued jobs begin now."""
        up = self._up(moment)
        free_of = self.free_slots(node.name for node in up)
        lent = sum(group.lent.total() for group in self.groups.values())
        free = sum(free_of.values()) + lent
        if free == 0:
            return Decision(placed=())
        rules = [queue.rules_at(moment) for queue in self.queues.values()]
        groups = Counter(group.job.queue for group in self.groups.values())
        closed = {queue.name for queue in rules if not queue.accepts(groups[queue.name])}
        queued_s = sum(seconds for name, seconds in self._queued_s.items() if name not in closed)
        candidates = self._candidates(moment, closed, Room(up, free_of, lent), free)
        self._asked = candidates, rules, queued_s
        return place(up, self._running(moment), candidates, rules, queued_s)

    def slots_to_take_back(self, moment: float) -> Slots:
        """The lent slots that those jobs would start on which the last `place` was asked for and which still
        wait."""
        candidates, rules, queued_s = self._asked
        waiting = [job for job in candidates if job.job not in self.groups]
        up, running = self._up(moment), self._running(moment)
        return slots_to_ask_back(up, running, waiting, rules, queued_s, self._elastic())

    def slots_to_lend(self, moment: float) -> Slots:
        """Free slots of their nodes for groups that end sooner with them."""
        gain_s = REGROUP_GAIN_S * GROW_SHARE
        return slots_to_give(self._up(moment), self._rendering(moment), self._elastic(), gain_s)

    def regroup(self, moment: float) -> list[Group]:
        """The groups that end so that their jobs begin anew on more slots."""
        return [self.groups[each.job] for each in jobs_to_regroup(self._up(moment), self._rendering(moment))]

    def _elastic(self) -> dict[str, ElasticGroup]:
        return {
            name: ElasticGroup(takes_more=frozenset(group.slots), lent=group.lent, returning={})
            for name, group in self.groups.items()
            if not group.lost
        }

    def _rendering(self, moment: float) -> list[RunningGroup]:
        """The groups, with what is left of those that render."""
        running = self._running(moment)
        return [replace(each, anew=self._anew(self.groups[each.job], moment)) for each in running]

    def _up(self, moment: float) -> list[Node]:
        """The nodes that take jobs, each with its next maintenance."""
        found = []
        for node in self.nodes.values():
            planned = seconds_until(self.maintenance.get(node.name, ()), moment)
            if node.name not in self.down and (planned is None or planned[0] > 0):
                found.append(node if planned is None else replace(node, maintenance=planned))
        return found

    def _running(self, moment: float) -> list[RunningGroup]:
        return [
            RunningGroup(
                job=name,
                owner=group.job.owner,
                queue=group.job.queue,
                slots=dict(group.slots),
                ends_in=group.ends - moment,
            )
            for name, group in self.groups.items()
        ]

    def _anew(self, group: Group, moment: float) -> PendingJob | None:
        rendering = group.begins <= moment < group.ends and not group.lost
        return _pending_job(group.job, moment) if rendering else None

    def _candidates(self, moment: float, closed: set[str], room: Room, free: int) -> list[PendingJob]:
        """What the dispatcher would consider."""
        open_ = [
            (jobs, room.candidates(tags))
            for (queue, _, _, tags), jobs in self._queued.items()
            if queue not in closed
        ]
        oldest = [job for jobs, few in open_ for job in jobs.oldest(few)]
        oldest.sort(key=lambda job: (-job.priority - (moment - job.created) / AGEING_S, job.name))
        found = {job.name: job for job in oldest[: most_candidates(free)]}
        for jobs, few in open_:
            longest = jobs.longest(most_of_the_longest(free) if few > 1 else 0)
            found |= {job.name: job for job in longest}
        return [_pending_job(job, moment) for job in found.values()]


def _pending_job(job: Job, moment: float) -> PendingJob:
    return PendingJob(
        job=job.name,
        owner=job.owner,
        queue=job.queue,
        priority=job.priority,
        waited=moment - job.created,
        least=job.least,
        most=job.most,
        memory=job.memory,
        tags=job.tags,
        estimated_seconds=job.remaining_s(job.least),
        work=job.remaining_s(1),
    )
