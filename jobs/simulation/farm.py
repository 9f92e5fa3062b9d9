"""The simulated farm: nodes, queues, pending jobs and running groups, and what `place` is asked with them."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from jobs.db.records import QueueRules
from jobs.db.time_window import TimeWindow
from jobs.scheduler.placement import AGEING_S, Decision, Node, PendingJob, RunningGroup, place
from jobs.simulation.workload import Workload

_PER_OWNER, _MAX_CANDIDATES = 64, 500
"""As the dispatcher takes them (`jobs.scheduler.dispatcher`)."""


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
    """By job name."""
    _pending: dict[tuple[str, str, int], list[tuple[float, str, Job]]] = field(default_factory=dict)
    """By queue, owner and priority; the oldest first."""

    def add(self, job: Job) -> None:
        """Queue a job, for the first time or again."""
        insort(
            self._pending.setdefault((job.queue, job.owner, job.priority), []), (job.created, job.name, job)
        )

    def free_slots(self, nodes: Iterable[str]) -> dict[str, int]:
        """The slots of some nodes that no group holds."""
        held = Counter[str]()
        for group in self.groups.values():
            held.update(group.slots)
        return {name: self.nodes[name].slots - held[name] for name in nodes}

    def place(self, moment: float) -> Decision:
        """A round of the scheduler. Takes the placed jobs out of the pending ones."""
        up = [node for node in self.nodes.values() if node.name not in self.down]
        held = Counter[str]()
        for group in self.groups.values():
            held.update(group.slots)
        if all(held[node.name] >= node.slots for node in up):
            return Decision(placed=())
        rules = [queue.rules_at(moment) for queue in self.queues.values()]
        decision = place(up, self._running(moment), self._candidates(moment, rules), rules)
        self._take({group.job for group in decision.placed})
        return decision

    def _take(self, names: set[str]) -> None:
        for key, found in self._pending.items():
            # The placed ones are among the first; the rest may be many.
            head = [each for each in found[:_PER_OWNER] if each[1] not in names]
            if len(head) < min(len(found), _PER_OWNER):
                self._pending[key] = head + found[_PER_OWNER:]

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

    def _candidates(self, moment: float, rules: list[QueueRules]) -> list[PendingJob]:
        groups = Counter(group.job.queue for group in self.groups.values())
        closed = {queue.name for queue in rules if not queue.accepts(groups[queue.name])}
        found = [
            job
            for (queue, _, _), jobs in self._pending.items()
            if queue not in closed
            for _, _, job in jobs[:_PER_OWNER]
        ]
        found.sort(key=lambda job: (-job.priority - (moment - job.created) / AGEING_S, job.name))
        return [_pending_job(job, moment) for job in found[:_MAX_CANDIDATES]]


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
