"""Running groups get free slots of their nodes, and give back what they were lent, and nothing else."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from jobs.scheduler.growing import ElasticGroup, slots_to_ask_back, slots_to_give
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import Node, RunningGroup

NODES = [Node(name="a", slots=4), Node(name="b", slots=4)]


def group(name: str, slots: dict[str, int], ends_in: float | None = 1000.0, most: int = 8) -> RunningGroup:
    anew = PendingJob(job=name, most=most) if most else None
    return RunningGroup(job=name, owner="", queue="default", slots=slots, ends_in=ends_in, anew=anew)


def elastic(
    *nodes: str, lent: dict[str, int] | None = None, back: dict[str, int] | None = None
) -> ElasticGroup:
    return ElasticGroup(takes_more=frozenset(nodes), lent=lent or {}, returning=back or {})


def test_a_group_gets_the_free_slots_of_its_node() -> None:
    assert slots_to_give(NODES, [group("x", {"a": 1})], {"x": elastic("a")}, 20) == {"x": {"a": 3}}
    assert slots_to_give(NODES, [group("x", {"a": 1}, most=2)], {"x": elastic("a")}, 20) == {"x": {"a": 1}}
    both = slots_to_give(NODES, [group("x", {"a": 2, "b": 2})], {"x": elastic("a", "b")}, 20)
    assert both == {"x": {"a": 2, "b": 2}}


def test_slots_go_to_the_group_that_ends_last() -> None:
    groups = [group("x", {"a": 1}, 1000), group("y", {"a": 1}, 100)]
    assert slots_to_give(NODES, groups, {"x": elastic("a"), "y": elastic("a")}, 20) == {"x": {"a": 2}}
    groups = [group("x", {"a": 1}, 1000), group("y", {"a": 1}, 990)]
    assert slots_to_give(NODES, groups, {"x": elastic("a"), "y": elastic("a")}, 20) == {
        "x": {"a": 1},
        "y": {"a": 1},
    }


def test_who_gains_nothing_or_takes_none_gets_none() -> None:
    for each in (
        group("ends soon", {"a": 1}, 20.0),
        group("no estimate", {"a": 1}, None),
        group("does not render", {"a": 1}, most=0),
        group("no slot is free", {"a": 4}),
    ):
        assert slots_to_give(NODES, [each], {each.job: elastic("a")}, 20) == {}
    assert slots_to_give(NODES, [group("x", {"a": 1})], {}, 20) == {}
    assert slots_to_give(NODES, [group("x", {"a": 1})], {"x": elastic()}, 20) == {}


def ask_back(*waiting: PendingJob, x: ElasticGroup, slots: dict[str, int]) -> object:
    return slots_to_ask_back(NODES[:1], [group("x", slots)], waiting, [], 0.0, {"x": x})


def test_a_group_gives_back_what_a_job_waits_for() -> None:
    waits = PendingJob(job="y", least=1, most=2)
    assert ask_back(waits, x=elastic(lent={"a": 3}), slots={"a": 4}) == {"x": {"a": 2}}
    assert ask_back(waits, x=elastic(lent={"a": 2}, back={"a": 1}), slots={"a": 4}) == {"x": {"a": 1}}
    assert ask_back(waits, x=elastic(back={"a": 3}), slots={"a": 4}) == {}
    assert ask_back(waits, x=elastic(), slots={"a": 4}) == {}, "it was placed with all of them"
    assert ask_back(x=elastic(lent={"a": 3}), slots={"a": 4}) == {}
    large = PendingJob(job="y", least=4, most=4)
    assert ask_back(large, x=elastic(lent={"a": 3}), slots={"a": 4}) == {}, "it would wait all the same"


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 4), st.floats(0, 1e5), st.integers(1, 16)), max_size=4
    )
)
def test_no_slot_is_given_twice(drawn: list[tuple[int, int, float, int]]) -> None:
    nodes = [Node(name="a", slots=16), Node(name="b", slots=16)]
    groups = [group(str(n), {"a": a, "b": b}, left, most) for n, (a, b, left, most) in enumerate(drawn)]
    found = slots_to_give(nodes, groups, {each.job: elastic("a", "b") for each in groups}, 20)
    held = Counter[str]()
    for each in groups:
        held.update(each.slots)
        held.update(found.get(each.job, {}))
        more = sum(found.get(each.job, {}).values())
        assert not more or more + sum(each.slots.values()) <= drawn[int(each.job)][3]
    assert all(held[node.name] <= node.slots for node in nodes)
