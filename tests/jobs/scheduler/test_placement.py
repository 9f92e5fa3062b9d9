"""Whole groups or nothing; large jobs are not starved by small ones; nothing deadlocks."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.db.records import QueueRules
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import Decision, Node, RunningGroup, fits, place

TWO = [Node(name="a", slots=2), Node(name="b", slots=2)]


def running(job: str, slots: dict[str, int], ends_in: float | None = None, owner: str = "") -> RunningGroup:
    return RunningGroup(job=job, owner=owner, queue="default", slots=slots, ends_in=ends_in)


def placed(decision: Decision) -> dict[str, dict[str, int]]:
    return {group.job: group.slots for group in decision.placed}


def test_a_group_goes_on_one_node_where_it_can_and_on_the_tightest() -> None:
    nodes = [Node(name="big", slots=8), Node(name="small", slots=2)]
    assert placed(place(nodes, [], [PendingJob(job="x", least=2, most=2)], [])) == {"x": {"small": 2}}


def test_a_group_spans_nodes_when_it_must() -> None:
    assert placed(place(TWO, [], [PendingJob(job="x", least=3, most=3)], [])) == {"x": {"a": 2, "b": 1}}


def test_fewer_ranks_will_do() -> None:
    decision = place(TWO, [running("y", {"a": 2})], [PendingJob(job="x", least=1, most=4)], [])
    assert placed(decision) == {"x": {"b": 2}}


def test_no_part_of_a_gang_is_ever_placed() -> None:
    decision = place(TWO, [running("y", {"a": 1})], [PendingJob(job="x", least=4, most=4)], [])
    assert placed(decision) == {}
    assert decision.reserved_for == "x"


def test_small_jobs_fill_in_only_where_they_end_in_time() -> None:
    head = PendingJob(job="head", least=4, most=4, priority=90)
    pending = [
        head,
        PendingJob(job="short", estimated_seconds=50.0),
        PendingJob(job="long", estimated_seconds=500.0),
        PendingJob(job="unknown"),
    ]
    decision = place(TWO, [running("y", {"a": 1}, ends_in=100.0)], pending, [])
    assert placed(decision) == {"short": {"a": 1}}
    assert decision.reserved == {"a", "b"}


def test_a_job_that_fits_nowhere_reserves_nothing() -> None:
    pending = [PendingJob(job="huge", least=99, most=99, priority=99), PendingJob(job="x")]
    decision = place(TWO, [], pending, [])
    assert list(placed(decision)) == ["x"] and decision.reserved_for is None


def test_memory_and_bad_nodes_are_looked_at() -> None:
    nodes = [Node(name="a", slots=1, vram_bytes=10), Node(name="b", slots=1, vram_bytes=30)]
    pending = [PendingJob(job="x", memory=((1, 20),)), PendingJob(job="y", avoid=frozenset({"b"}))]
    assert placed(place(nodes, [], pending, [])) == {"x": {"b": 1}, "y": {"a": 1}}


def test_an_image_too_large_for_one_slot_goes_to_as_many_as_it_takes() -> None:
    nodes = [Node(name="a", slots=8, vram_bytes=10), Node(name="b", slots=4, vram_bytes=30)]
    job_ = PendingJob(job="x", most=8, memory=((1, 50), (2, 25), (4, 10)))
    assert placed(place(nodes, [], [job_], [])) == {"x": {"a": 8}}
    # Three slots are too few for so little memory each; two ranks need the other node.
    assert placed(place(nodes, [running("y", {"a": 5, "b": 2})], [job_], [])) == {"x": {"a": 3, "b": 2}}
    assert placed(place(nodes, [running("y", {"a": 6, "b": 1})], [job_], [])) == {"x": {"b": 3, "a": 2}}
    assert placed(place(nodes, [running("y", {"a": 7, "b": 2})], [job_], [])) == {"x": {"b": 2}}
    # No slot holds one rank of it alone; it waits for what it takes.
    held = place(nodes, [running("y", {"a": 8, "b": 3})], [job_], [])
    assert placed(held) == {} and held.reserved_for == "x" and held.reserved == {"b"}
    assert not fits([Node(name="c", slots=3, vram_bytes=20)], job_)


@given(st.integers(1, 8), st.integers(0, 60), st.lists(st.integers(1, 70), min_size=1, max_size=4))
def test_sizes_part_the_numbers_of_ranks(least: int, more: int, begins: list[int]) -> None:
    memory = tuple((ranks, 100 - ranks) for ranks in sorted({1, *begins}))
    job_ = PendingJob(job="x", least=least, most=least + more, memory=memory)
    covered = [ranks for size in job_.sizes[::-1] for ranks in range(size.least, size.most + 1)]
    assert covered == list(range(least, least + more + 1))
    for size in job_.sizes:
        known = max(ranks for ranks, _ in memory if ranks <= size.least)
        assert size.memory_bytes == 100 - known


def test_queues_have_limits_and_may_be_closed() -> None:
    queues = [QueueRules(name="few", limit=1), QueueRules(name="shut", open=False)]
    pending = [PendingJob(job=f"f{number}", queue="few") for number in range(3)] + [
        PendingJob(job="s", queue="shut")
    ]
    assert list(placed(place(TWO, [], pending, queues))) == ["f0"]


def test_an_old_job_overtakes_a_slightly_better_one() -> None:
    one = [Node(name="a", slots=1)]
    pending = [PendingJob(job="old", priority=50, waited=5 * 3600.0), PendingJob(job="new", priority=52)]
    assert list(placed(place(one, [], pending, []))) == ["old"]


def test_owners_share_by_weight() -> None:
    nodes = [Node(name="a", slots=12)]
    pending = [PendingJob(job=f"x{n:02}", owner="x", waited=9.0) for n in range(20)]
    pending += [PendingJob(job=f"y{n:02}", owner="y") for n in range(20)]
    started = placed(place(nodes, [], pending, [QueueRules(name="default", shares={"y": 2.0})]))
    assert sum(job.startswith("y") for job in started) == 8


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_jobs_start_in_their_order_as_it_is_after_each_start(seed: int) -> None:
    # The oracle sorts all of them anew each time; slots are so many that all are placed.
    draw = random.Random(seed)
    nodes = [Node(name="a", slots=100)]
    shares = {"x": 2.0, "z": 0.5}
    pending = [
        PendingJob(
            job=f"{number:02}",
            owner=draw.choice("xyz"),
            queue=draw.choice(("default", "night")),
            priority=draw.choice((50, 50, 60)),
            waited=draw.choice((0.0, 10.0, 4000.0)),
            most=draw.choice((1, 3)),
        )
        for number in range(30)
    ]
    used = dict.fromkeys(((job_.queue, job_.owner) for job_ in pending), 0)

    def order(job_: PendingJob) -> tuple[float, float, float, str]:
        share = used[job_.queue, job_.owner] / (shares.get(job_.owner, 1) if job_.queue == "night" else 1)
        return -(job_.priority + job_.waited // 3600), share, -job_.waited, job_.job

    expected, left = [], list(pending)
    while left:
        first = min(left, key=order)
        left.remove(first)
        used[first.queue, first.owner] += first.most
        expected.append(first.job)
    assert list(placed(place(nodes, [], pending, [QueueRules(name="night", shares=shares)]))) == expected


ONE_EACH = [Node(name="a", slots=1), Node(name="b", slots=1)]


def test_small_jobs_run_one_on_each_node_while_others_wait() -> None:
    """A farm that was idle used to give the first one every slot of all nodes."""
    waiting = [PendingJob(job=f"{number:02}", most=8, estimated_seconds=1.0) for number in range(20)]
    free = {"a", "b"}
    held: list[RunningGroup] = []
    rounds = 0
    while waiting:
        started = placed(place(ONE_EACH, held, waiting, []))
        assert {tuple(slots.items()) for slots in started.values()} == {((name, 1),) for name in free}
        waiting = [job_ for job_ in waiting if job_.job not in started]
        # The group on a ends before the one on b, and so on in turns.
        name = "ab"[rounds % 2]
        held = [running(job, slots) for job, slots in started.items()] + held
        held = [group for group in held if name not in group.slots]
        free, rounds = {name}, rounds + 1
    assert rounds == 19


def test_a_job_alone_spreads_and_a_short_one_only_if_it_gains() -> None:
    def of(seconds: float | None) -> dict[str, int]:
        return placed(place(ONE_EACH, [], [PendingJob(job="x", most=8, estimated_seconds=seconds)], []))["x"]

    assert of(None) == of(600.0) == {"a": 1, "b": 1}
    assert of(3.0) == {"a": 1}, "forming a group across nodes would take longer"


def test_jobs_share_the_slots_by_their_work() -> None:
    farm = [Node(name="a", slots=8)]
    equal = [PendingJob(job=name, most=8) for name in "xyz"]
    assert sorted(sum(slots.values()) for slots in placed(place(farm, [], equal, [])).values()) == [2, 3, 3]
    large = PendingJob(job="large", most=6, work=1000.0)
    small = [PendingJob(job=f"small{number}", most=2) for number in range(50)]
    started = placed(place(farm, [], [large, *small], []))
    assert started["large"] == {"a": 6} and len(started) == 3


def test_a_more_urgent_job_shares_with_nobody_and_a_limit_leaves_the_slots_to_others() -> None:
    farm = [Node(name="a", slots=4)]
    waiting = [PendingJob(job=f"x{number}", most=4) for number in range(9)]
    urgent = PendingJob(job="urgent", most=4, priority=90)
    assert placed(place(farm, [], [urgent, *waiting], [])) == {"urgent": {"a": 4}}
    assert placed(place(farm, [], waiting, [QueueRules(name="default", limit=1)])) == {"x0": {"a": 4}}
    assert len(placed(place(farm, [], waiting, [QueueRules(name="default", limit=2)]))) == 2


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.lists(
        st.tuples(
            st.integers(1, 3), st.integers(0, 8), st.floats(0.01, 1e6), st.sampled_from([None, 1.0, 900.0])
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_sharing_leaves_no_slot_idle_that_a_waiting_job_could_have(
    slots: list[int], jobs: list[tuple[int, int, float, float | None]]
) -> None:
    farm = [Node(name=f"n{number}", slots=count) for number, count in enumerate(slots)]
    waiting = [
        PendingJob(job=f"{number:02}", least=least, most=least + more, work=work, estimated_seconds=seconds)
        for number, (least, more, work, seconds) in enumerate(jobs)
    ]
    decision = place(farm, [], waiting, [])
    started = placed(decision)
    free = sum(slots) - sum(sum(held.values()) for held in started.values())
    for job_ in waiting:
        held = started.get(job_.job)
        if held is not None:
            assert job_.least <= sum(held.values()) <= job_.most
        elif decision.reserved_for is None:
            assert job_.least > free


class Simulation:
    """A farm on a simulated clock: places, lets time pass, finishes jobs."""

    def __init__(self, nodes: list[Node], pending: list[tuple[float, PendingJob, float]]) -> None:
        self.nodes, self.now = nodes, 0.0
        self.coming = sorted(pending, key=lambda entry: entry[0])
        self.waiting: dict[str, tuple[float, PendingJob, float]] = {}
        self.ends: list[tuple[float, str]] = []
        self.held: dict[str, tuple[PendingJob, dict[str, int]]] = {}
        self.started: dict[str, float] = {}

    def run(self) -> None:
        while self.coming or self.waiting or self.held:
            self._arrive()
            self._start()
            self._pass_time()

    def _arrive(self) -> None:
        while self.coming and self.coming[0][0] <= self.now:
            came, job_, seconds = self.coming.pop(0)
            self.waiting[job_.job] = (came, job_, seconds)

    def _start(self) -> None:
        ends = {job: end for end, job in self.ends}
        holding = [
            running(job, slots, ends[job] - self.now, job_.owner) for job, (job_, slots) in self.held.items()
        ]
        pending = [replace(job_, waited=self.now - came) for came, job_, _ in self.waiting.values()]
        for group in place(self.nodes, holding, pending, []).placed:
            _, job_, seconds = self.waiting.pop(group.job)
            assert job_.least <= group.ranks <= job_.most, "whole groups only"
            self.held[group.job] = (job_, group.slots)
            self.started[group.job] = self.now
            heapq.heappush(self.ends, (self.now + seconds, group.job))
        for node in self.nodes:
            used = sum(slots.get(node.name, 0) for _, slots in self.held.values())
            assert used <= node.slots, "no slot is given twice"

    def _pass_time(self) -> None:
        moments = [self.ends[0][0]] if self.ends else []
        moments += [self.coming[0][0]] if self.coming else []
        assert moments or not self.waiting, f"deadlock with {list(self.waiting)} waiting"
        if moments:
            self.now = min(moments)
        while self.ends and self.ends[0][0] <= self.now:
            del self.held[heapq.heappop(self.ends)[1]]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_mixed_jobs_never_deadlock(seed: int, slots: list[int]) -> None:
    draw = random.Random(seed)
    nodes = [Node(name=f"n{number}", slots=count) for number, count in enumerate(slots)]
    total = sum(node.slots for node in nodes)
    pending = []
    for number in range(200):
        least = draw.randint(1, total)
        job_ = PendingJob(
            job=f"j{number:03}",
            owner=draw.choice("abc"),
            priority=draw.randint(0, 100),
            least=least,
            most=draw.randint(least, total),
            estimated_seconds=draw.choice([None, draw.uniform(1, 500)]),
        )
        pending.append((draw.uniform(0, 2000), job_, draw.uniform(1, 500)))
    simulation = Simulation(nodes, pending)
    simulation.run()
    assert len(simulation.started) == 200


def test_two_gangs_that_each_need_all_nodes_finish() -> None:
    pending = [(0.0, PendingJob(job=name, least=4, most=4), 10.0) for name in ("x", "y")]
    simulation = Simulation(TWO, pending)
    simulation.run()
    assert simulation.started == {"x": 0.0, "y": 10.0}


def test_a_stream_of_small_jobs_does_not_starve_a_large_one() -> None:
    small = [
        (float(number), PendingJob(job=f"s{number:04}", estimated_seconds=3.0), 3.0) for number in range(2000)
    ]
    simulation = Simulation(
        TWO, [*small, (10.0, PendingJob(job="large", least=4, most=4, estimated_seconds=10.0), 10.0)]
    )
    simulation.run()
    assert simulation.started["large"] <= 20.0
