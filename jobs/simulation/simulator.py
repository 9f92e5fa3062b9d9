"""Runs a farm on a simulated clock, from event to event."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count

from jobs.db.maintenance import next_maintenance
from jobs.db.records import PlacedGroup
from jobs.simulation.farm import Group, Job, SimulatedFarm
from jobs.simulation.outcome import Outcome, OwnerWait, percentile
from jobs.simulation.scenario import Faults
from jobs.simulation.warm_groups import WarmGroups
from jobs.simulation.workload import ModelTimes

_HORIZON_S = 60 * 86_400.0
"""Jobs that are not done by then are reported as not done."""


@dataclass(kw_only=True)
class Simulator:
    """One simulation. `run` may be called once."""

    farm: SimulatedFarm
    jobs: list[Job]
    start: float
    """Seconds since the epoch."""
    times: dict[str, ModelTimes]
    """By model; one that is missing starts at once."""
    faults: Faults | None = None
    checkpoint_s: float = 60.0
    round_s: float = 1.0
    _now: float = field(init=False)
    _events: list[tuple[float, int, Callable[[], None]]] = field(init=False, default_factory=list)
    _numbers: count[int] = field(init=False, default_factory=count)
    _warm: WarmGroups = field(init=False, default_factory=WarmGroups)
    _lost_slot_s: float = field(init=False, default=0.0)
    _held_slot_s: float = field(init=False, default=0.0)
    _held_slots: int = field(init=False, default=0)
    _counted: float = field(init=False, default=0.0)
    """The moment until which `_held_slot_s` is counted."""
    _done: int = field(init=False, default=0)
    _handled: int = field(init=False, default=0)
    _rounds: list[float] = field(init=False, default_factory=list)
    _losses: int = field(init=False, default=0)

    def run(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Outcome:
        """Simulate until every job is done. `on_progress` gets the numbers of done jobs and of all."""
        self._now = self._counted = self.start
        began = time.perf_counter()
        by_name = {job.name: job for job in self.jobs}
        for job in self.jobs:
            self._at(job.created, lambda job=job: self.farm.add(job))  # type: ignore[misc]
        self._watch_windows()
        for name in self.farm.maintenance:
            self._watch_maintenance(name)
        self._draw_faults()
        while self._events and self._done < len(self.jobs) and self._now < self.start + _HORIZON_S:
            self._advance()
            round_began = time.perf_counter()
            decision = self.farm.place(self._now)
            self._rounds.append(time.perf_counter() - round_began)
            for placed in decision.placed:
                self._begin(by_name[placed.job], placed)
            if decision.placed or decision.reserved_for is not None:
                self._take_back()
            elif not self._lend():
                self._regroup()
            on_progress(self._done, len(self.jobs))
        return self._outcome(time.perf_counter() - began)

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), action))

    def _advance(self) -> None:
        """Handle the next event and those that share its round."""
        until = self._events[0][0] + self.round_s
        while self._events and self._events[0][0] <= until:
            self._now, _, action = heapq.heappop(self._events)
            self._handled += 1
            action()

    def _begin(self, job: Job, placed: PlacedGroup) -> None:
        model, slots = job.workload.model, dict(placed.slots)
        is_warm = self._warm.take(model, slots, self.farm.free_slots(slots))
        times = self.times.get(model)
        start_s = 0.0 if times is None else times.warm_start_s if is_warm else times.start_s
        group = Group(job=job, slots=Counter(slots), own=slots, begins=self._now + start_s)
        job.started = self._now if job.started is None else job.started
        self.farm.begin(group)
        self._count_held(group.held)
        self._at(group.ends, lambda: self._end(group))

    def _end(self, group: Group) -> None:
        # A group that has given slots back ends later.
        if self._is_gone(group) or group.ends > self._now:
            return
        self._release(group)
        group.job.done, group.job.ended = 1.0, self._now
        self._done += 1
        self._warm.add(group.job.workload.model, dict(group.own))

    def _is_gone(self, group: Group) -> bool:
        return self.farm.groups.get(group.job.name) is not group or group.lost

    def _stop(self, group: Group, checkpointed_s: float | None = None) -> None:
        """End a group early; its job is queued again with what its checkpoint holds.

        `checkpointed_s` is how long it had rendered at the last checkpoint; None if it has just written one.
        """
        rendered = max(0.0, self._now - group.begins)
        kept = rendered if checkpointed_s is None else checkpointed_s
        group.keep(kept)
        self._lost_slot_s += (rendered - kept) * group.ranks
        self._release(group)
        self.farm.add(group.job)

    def _lend(self) -> bool:
        """Groups take free slots; their new ranks load the model first. Whether any does."""
        given = self.farm.slots_to_lend(self._now)
        for name, slots in given.items():
            group, times = self.farm.groups[name], self.times.get(self.farm.groups[name].job.workload.model)
            self.farm.lend(group, slots)
            self._count_held(sum(slots.values()))
            joins = self._now + (0.0 if times is None else times.start_s)
            self._at(joins, lambda group=group, slots=slots: self._join(group, slots))  # type: ignore[misc]
        return bool(given)

    def _join(self, group: Group, slots: Mapping[str, int]) -> None:
        """New ranks take part from now on, as far as they have not been taken back."""
        if not self._is_gone(group):
            group.advance(self._now)
            group.joining -= Counter(slots)
            self._reckon(group)

    def _take_back(self) -> None:
        """Groups give back slots that others wait for, which start in the next round."""
        for name, slots in self.farm.slots_to_take_back(self._now).items():
            group = self.farm.groups[name]
            group.advance(self._now)
            self.farm.take_back(group, slots)
            self._count_held(-sum(slots.values()))
            self._reckon(group)
            self._at(self._now + self.round_s, lambda: None)

    def _reckon(self, group: Group) -> None:
        """A group with another number of ranks ends at another time."""
        group.rest()
        self._at(group.ends, lambda: self._end(group))

    def _count_held(self, more: int) -> None:
        """Groups hold so many more slots from now on."""
        self._held_slot_s += (self._now - self._counted) * self._held_slots
        self._held_slots, self._counted = self._held_slots + more, self._now

    def _regroup(self) -> None:
        """Jobs that begin anew on more slots are placed in the next round."""
        for group in self.farm.regroup(self._now):
            self._stop(group)
            self._at(self._now + self.round_s, lambda: None)

    def _release(self, group: Group) -> None:
        self._count_held(-group.held)
        self.farm.end(group)

    def _watch_windows(self) -> None:
        for name, queue in self.farm.queues.items():
            if queue.window is not None:
                self._at(
                    queue.window.next_change(self._now),
                    lambda name=name: self._window_changes(name),  # type: ignore[misc]
                )

    def _window_changes(self, name: str) -> None:
        window = self.farm.queues[name].window
        assert window is not None, "only windows that exist change"
        if not window.is_open(self._now):
            for group in [each for each in self.farm.groups.values() if each.job.queue == name]:
                # One that ends at this very moment is done.
                finish = self._end if group.ends <= self._now else self._stop
                finish(group)
        self._at(window.next_change(self._now), lambda: self._window_changes(name))

    def _watch_maintenance(self, node: str) -> None:
        """A round when a maintenance of a node ends, and so on."""
        found = next_maintenance(self.farm.maintenance[node], self._now)
        if found is not None:
            self._at(found[1], lambda: self._watch_maintenance(node))

    def _draw_faults(self) -> None:
        if self.faults is None:
            return
        for name in self.farm.nodes:
            self._next_fault(name, random.Random(f"{self.faults.seed}/{name}"))

    def _next_fault(self, name: str, source: random.Random) -> None:
        assert self.faults is not None, "there are faults to draw"
        after = source.expovariate(1 / (self.faults.node_hours * 3600))
        self._at(self._now + after, lambda: self._fail(name, source))

    def _fail(self, name: str, source: random.Random) -> None:
        """A node dies: its groups are declared lost a while later, and it returns."""
        assert self.faults is not None, "there are faults to draw"
        self._losses += 1
        self.farm.down.add(name)
        self._warm.end_node(name)
        died = self._now
        for group in [each for each in self.farm.groups.values() if name in each.slots]:
            group.lost = True
            rendered = max(0.0, died - group.begins)
            kept = rendered if not self.checkpoint_s else rendered // self.checkpoint_s * self.checkpoint_s
            self._at(died + self.faults.notice_s, lambda group=group, kept=kept: self._stop(group, kept))  # type: ignore[misc]
        self._at(died + self.faults.down_s, lambda: self._return(name, source))

    def _return(self, name: str, source: random.Random) -> None:
        self.farm.down.discard(name)
        self._next_fault(name, source)

    def _outcome(self, seconds: float) -> Outcome:
        done = [job for job in self.jobs if job.ended is not None]
        end = max((job.ended for job in done if job.ended is not None), default=self.start)
        slots = sum(node.slots for node in self.farm.nodes.values())
        useful = sum(job.workload.useful_s() for job in done)
        makespan = end - self.start
        return Outcome(
            start=self.start,
            end=end if len(done) == len(self.jobs) else None,
            jobs=len(self.jobs),
            done=len(done),
            slots=slots,
            makespan_s=makespan,
            useful_slot_s=useful,
            held_slot_s=self._held_slot_s,
            lost_slot_s=self._lost_slot_s,
            busy_share=useful / (slots * makespan) if makespan else 0.0,
            waits=tuple(_waits(done)),
            faults=self._losses,
            events=self._handled,
            rounds=len(self._rounds),
            slowest_round_s=max(self._rounds, default=0.0),
            simulated_in_s=seconds,
        )


def _waits(done: Iterable[Job]) -> Iterable[OwnerWait]:
    by_owner: dict[str, list[float]] = {}
    for job in done:
        by_owner.setdefault(job.owner, []).append((job.started or job.created) - job.created)
    for owner, waits in sorted(by_owner.items()):
        yield OwnerWait(
            owner=owner,
            jobs=len(waits),
            mean_s=sum(waits) / len(waits),
            median_s=percentile(waits, 0.5),
            worst_s=max(waits),
        )
