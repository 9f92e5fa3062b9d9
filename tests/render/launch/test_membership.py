"""When a group of LEAST:MOST nodes starts, and with whom."""

from __future__ import annotations

import pytest

from render.launch.membership import JoinRefused, Membership


def test_a_full_group_starts_at_once() -> None:
    group = Membership(2, 2, last_call_s=15)
    group.join(0, 0.0)
    assert group.due_in(100.0) is None
    group.join(1, 100.0)
    assert group.due_in(100.0) == 0.0
    assert group.start() == (0, 1)


def test_a_smaller_group_waits_for_a_last_call_that_every_node_begins_anew() -> None:
    group = Membership(2, 4, last_call_s=15)
    group.join(3, 0.0)
    assert group.due_in(1000.0) is None
    group.join(0, 10.0)
    assert group.due_in(10.0) == 15.0
    group.join(1, 20.0)
    assert group.due_in(24.0) == 11.0
    assert group.due_in(35.0) == 0.0
    # Ranks follow the nodes' own numbers, whatever the order of arrival.
    assert group.start() == (0, 1, 3)


def test_a_node_that_dies_while_it_waits_is_not_counted() -> None:
    group = Membership(2, 3, last_call_s=15)
    group.join(0, 0.0)
    group.join(1, 0.0)
    group.leave(1)
    assert group.due_in(100.0) is None
    assert group.missing == "nodes 1, 2"
    group.join(1, 200.0)
    assert group.due_in(215.0) == 0.0


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (1, "node-rank: 1 has joined already"),
        (3, "node-rank: 3 is not a node of this group; use 0 to 2"),
        (-1, "node-rank: -1 is not a node of this group"),
    ],
)
def test_numbers_that_cannot_be(node: int, sentence: str) -> None:
    group = Membership(1, 3, last_call_s=15)
    group.join(1, 0.0)
    with pytest.raises(JoinRefused, match=sentence):
        group.join(node, 1.0)


def test_late_nodes_are_refused_in_one_sentence() -> None:
    group = Membership(1, 3, last_call_s=0)
    group.join(0, 0.0)
    group.start()
    with pytest.raises(JoinRefused, match=r"^node 2 came too late: the group has started with 1 node"):
        group.join(2, 1.0)
    # Nobody's end matters to the membership any more.
    group.leave(0)
    assert group.start() == (0,)
