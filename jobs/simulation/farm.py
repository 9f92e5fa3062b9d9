"""The simulated farm: nodes, queues, pending jobs and running groups, and what `place` is asked with them."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from jobs.db.records import QueueRules
from jobs.db.time_window import TimeWindow
from jobs.scheduler.dispatcher import most_candidates, most_of_an_owner
from jobs.scheduler.placement import AGEING_S, Decision, Node, PendingJob, RunningGroup, place
from jobs.simulation.workload import Workload


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
    done: float = 0.0
    """Share of the work that a checkpoint holds."""
    started: float | None = None
    ended: float | None = None

    def remaining_s(self, ranks: int) -> float:
        """Time for the rest of the image."""
        return self.workload.seconds(ranks) * (1 - self.done)


@dataclass(kw_only=True)
class Group:
    """A running group. It renders from `begins`, after its start, to `ends`."""

    job: Job
    slots: dict[str, int]
    placed: float
    begins: float
    ends: float
    lost: bool = False

    @property
    def ranks(self) -> int:
        return sum(self.slots.values())


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


@dataclass(kw_only=True)
class SimulatedFarm:
    """The state between two events."""

    nodes: dict[str, Node]
    queues: dict[str, Queue]
    down: set[str] = field(default_factory=set)
    groups: dict[str, Group] = field(default_factory=dict)
    """By job name; changed by `begin` and `end`."""
    _held: Counter[str] = field(default_factory=Counter)
    """Slots of each node that groups hold, kept up to date: a farm may have thousands of groups."""
    _pending: dict[tuple[str, str, int], list[tuple[float, str, Job]]] = field(default_factory=dict)
    """By queue, owner and priority; the oldest first."""

    def add(self, job: Job) -> None:
        """Queue a job, for the first time or again."""
        insort(
            self._pending.setdefault((job.queue, job.owner, job.priority), []), (job.created, job.name, job)
        )

    def begin(self, group: Group) -> None:
        """A group takes its slots."""
        self.groups[group.job.name] = group
        self._held.update(group.slots)

    def end(self, group: Group) -> None:
        """A group gives them back."""
        del self.groups[group.job.name]
        self._held.subtract(group.slots)

    def free_slots(self, nodes: Iterable[str]) -> dict[str, int]:
        """The slots of some nodes that no group holds."""
        return {name: self.nodes[name].slots - self._held[name] for name in nodes}

    def place(self, moment: float) -> Decision:
        """A round of the scheduler. Takes the placed jobs out of the pending ones."""
        up = [node for node in self.nodes.values() if node.name not in self.down]
        free = sum(self.free_slots(node.name for node in up).values())
        if free == 0:
            return Decision(placed=())
        rules = [queue.rules_at(moment) for queue in self.queues.values()]
        decision = place(up, self._running(moment), self._candidates(moment, rules, free), rules)
        self._take({group.job for group in decision.placed}, most_of_an_owner(free))
        return decision

    def _take(self, names: set[str], most: int) -> None:
        """Remove jobs that are among the first `most` of their lists; the rest may be many."""
        for key, found in self._pending.items():
            head = [each for each in found[:most] if each[1] not in names]
            if len(head) < min(len(found), most):
                self._pending[key] = head + found[most:]

    def _running(self, moment: float) -> Iterable[RunningGroup]:
        return [
            RunningGroup(
                job=name,
                owner=group.job.owner,
                queue=group.job.queue,
                slots=group.slots,
                ends_in=group.ends - moment,
            )
            for name, group in self.groups.items()
        ]

    def _candidates(self, moment: float, rules: list[QueueRules], free: int) -> list[PendingJob]:
        groups = Counter(group.job.queue for group in self.groups.values())
        closed = {queue.name for queue in rules if not queue.accepts(groups[queue.name])}
        found = [
            job
            for (queue, _, _), jobs in self._pending.items()
            if queue not in closed
            for _, _, job in jobs[: most_of_an_owner(free)]
        ]
        found.sort(key=lambda job: (-job.priority - (moment - job.created) / AGEING_S, job.name))
        return [_pending_job(job, moment) for job in found[: most_candidates(free)]]


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
        estimated_seconds=job.remaining_s(job.least),
        work=job.remaining_s(1),
    )
