"""What becomes of a group over several nodes when its ranks and nodes die, come back and end."""

from __future__ import annotations

from typing import Any

from render.launch.epoch_coordinator import MOST_DEATHS, EpochCoordinator
from render.launch.rank_environment import PEERS_LOST


class Farm:
    """Two nodes of two ranks each, and what their coordinator has sent them."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.requested, self.finished = {1}, set[int]()
        self.lost: list[int] = []
        self.coordinator = EpochCoordinator(
            range(2),
            lambda node, message: self.sent.append((node, message)),
            requested=lambda number: number in self.requested,
            finished=lambda number: number in self.finished,
            node_lost=self.lost.append,
        )
        for node, ranks in enumerate(((0, 1), (2, 3))):
            self.coordinator.join(node, ranks)
            for rank in ranks:
                self.take(rank, start=rank)

    def take(self, rank: int, **message: Any) -> None:
        self.coordinator.take(rank // 2, message)

    def add(self, rank: int, **message: Any) -> None:
        """A message of a rank that node 1 has added."""
        assert rank > 3
        self.coordinator.take(1, message)

    def ready(self, *ranks: int, request: int = 1, lost: bool = False) -> None:
        for rank in ranks:
            self.take(rank, ready=rank, request=request, lost=lost)

    def end(self, rank: int, *, died: bool = True, crashed: bool = True) -> None:
        self.take(rank, end=rank, died=died, crashed=crashed)

    def newest(self) -> list[tuple[int, dict[str, Any]]]:
        """What was sent since the last look."""
        found, self.sent = self.sent, []
        return sorted(found, key=lambda each: each[0])


def rendering() -> Farm:
    farm = Farm()
    farm.ready(0, 1, 2, 3)
    assert farm.newest() == [(node, {"epoch": 1, "ranks": [0, 1, 2, 3], "first": 0}) for node in (0, 1)]
    return farm


def test_a_rank_of_another_node_dies_and_its_successor_joins() -> None:
    farm = rendering()
    farm.end(3)
    broken = {"broken": 1, "members": [0, 1, 2]}
    assert farm.newest() == [(0, broken), (1, {"again": 3}), (1, broken)]
    farm.take(3, start=3)
    farm.ready(0, 1, 2)
    assert farm.newest() == [(node, {"epoch": 2, "ranks": [0, 1, 2], "first": 0}) for node in (0, 1)]
    farm.ready(3)
    assert farm.newest() == [(node, {"joining": 2, "members": [0, 1, 2]}) for node in (0, 1)]
    farm.ready(0, 1, 2)
    assert farm.newest() == [(node, {"epoch": 3, "ranks": [0, 1, 2, 3], "first": 0}) for node in (0, 1)]


def test_a_rank_that_does_not_reach_the_others_calls_all_back() -> None:
    farm = rendering()
    farm.ready(2, lost=True)
    assert farm.newest() == [(node, {"broken": 1, "members": [0, 1, 2, 3]}) for node in (0, 1)]
    farm.ready(0, 1, 3)
    assert farm.newest() == [(node, {"epoch": 2, "ranks": [0, 1, 2, 3], "first": 0}) for node in (0, 1)]


def test_a_group_goes_on_without_a_node() -> None:
    farm = rendering()
    farm.coordinator.lose(1)
    assert farm.lost == [1]
    assert farm.newest() == [(0, {"broken": 1, "members": [0, 1]})]
    farm.ready(0, 1)
    assert farm.newest() == [(0, {"epoch": 2, "ranks": [0, 1], "first": 0})]


def test_a_node_that_is_lost_before_the_first_epoch_is_not_waited_for() -> None:
    farm = Farm()
    farm.ready(0, 1, 2)
    farm.coordinator.lose(1)
    assert farm.lost == [1] and farm.newest() == [(0, {"epoch": 1, "ranks": [0, 1], "first": 0})]


def test_an_idle_group_and_one_that_works_apart_end_with_a_node() -> None:
    for message in ({"done": 1}, {"apart": 1}):
        farm = rendering()
        farm.take(0, **message)
        farm.coordinator.lose(1)
        assert farm.lost == [] and farm.newest() == [(0, {"over": PEERS_LOST})]


def test_a_rank_that_ends_by_its_own_fault_ends_the_other_nodes() -> None:
    farm = rendering()
    farm.end(3, crashed=False)
    assert farm.newest() == [(0, {"over": PEERS_LOST}), (1, {"gone": 3})]
    farm.end(0)
    assert farm.newest() == [(0, {"gone": 0})]


def test_too_many_deaths_in_one_request_end_the_group() -> None:
    farm = rendering()
    for _ in range(MOST_DEATHS):
        farm.end(3)
        assert (1, {"again": 3}) in farm.newest()
        farm.take(3, start=3)
    farm.end(3)
    assert (0, {"over": PEERS_LOST}) in farm.newest()


def test_who_waits_to_render_what_is_finished_is_told() -> None:
    farm = rendering()
    farm.end(3)
    farm.take(3, start=3)
    farm.ready(0, 1, 2)
    farm.newest()
    # All ranks of node 1 may have been away when the others finished.
    farm.ready(3)
    farm.newest()
    farm.take(0, done=1)
    farm.finished.add(1)
    farm.coordinator.tick()
    assert farm.newest() == [(1, {"finished": 1, "rank": 3})]
    farm.coordinator.tick()
    assert farm.newest() == []
    farm.ready(3)
    assert farm.newest() == [(1, {"finished": 1, "rank": 3})]


def test_a_successor_that_comes_too_late_ends_with_the_others() -> None:
    farm = rendering()
    farm.end(3)
    farm.take(3, start=3)
    farm.ready(0, 1, 2)
    farm.newest()
    for rank in (0, 1, 2):
        farm.end(rank, died=False, crashed=False)
    assert [each for each in farm.newest() if "over" in each[1]] == [(0, {"over": 0}), (1, {"over": 0})]


def grown() -> Farm:
    """Of five ranks, the last of which node 1 has added."""
    farm = rendering()
    farm.coordinator.take(1, {"more": 1})
    assert farm.newest() == [(1, {"added": [4], "request": 1})]
    farm.add(4, start=4)
    farm.add(4, ready=4, request=1, lost=False)
    farm.ready(0, 1, 2, 3)
    assert farm.newest()[-1] == (1, {"epoch": 2, "ranks": [0, 1, 2, 3, 4], "first": 0})
    return farm


def test_an_added_rank_that_fails_ends_nothing_and_has_no_successor() -> None:
    for crashed in (True, False):
        farm = grown()
        farm.add(4, end=4, died=True, crashed=crashed)
        broken = {"broken": 2, "members": [0, 1, 2, 3]}
        assert farm.newest() == [(0, broken), (1, {"left": 4}), (1, broken)]


def test_a_rank_that_fails_before_it_has_joined_is_not_noticed() -> None:
    farm = rendering()
    farm.coordinator.take(0, {"more": 2})
    assert farm.newest() == [(0, {"added": [4, 5], "request": 1})]
    for rank in (4, 5):
        farm.coordinator.take(0, {"start": rank})
        farm.coordinator.take(0, {"end": rank, "died": True, "crashed": True})
    assert farm.newest() == [(0, {"left": 4}), (0, {"left": 5})]


def test_a_rank_that_the_others_do_not_reach_leaves_again() -> None:
    farm = grown()
    farm.ready(1, lost=True)
    farm.ready(0, 2, 3)
    farm.newest()
    farm.add(4, ready=4, request=1, lost=True)
    found = farm.newest()
    assert (1, {"dismissed": 4}) in found
    assert (0, {"epoch": 3, "ranks": [0, 1, 2, 3], "first": 0}) in found
    # Whom they have reached before stays.
    farm = grown()
    farm.add(4, ready=4, request=1, lost=False)
    farm.ready(0, 1, 2, 3)
    farm.newest()
    farm.ready(1, lost=True)
    farm.add(4, ready=4, request=1, lost=True)
    farm.ready(0, 2, 3, lost=True)
    assert farm.newest()[-1] == (1, {"epoch": 4, "ranks": [0, 1, 2, 3, 4], "first": 0})


def test_ranks_leave_added_ones_and_others() -> None:
    farm = grown()
    farm.coordinator.take(1, {"leave": [2, 4, 0]})
    joining = {"joining": 2, "members": [0, 1, 2, 3, 4]}
    assert farm.newest() == [(0, joining), (1, joining)], "rank 0 is another node's"
    farm.add(4, ready=4, request=1, lost=False)
    farm.ready(0, 1, 2, 3)
    found = farm.newest()
    assert {"dismissed": 2} in [message for _, message in found]
    assert {"dismissed": 4} in [message for _, message in found]
    assert (0, {"epoch": 3, "ranks": [0, 1, 3], "first": 0}) in found
    # One of them is killed before it can end.
    farm.end(2)
    farm.add(4, end=4, died=False, crashed=False)
    assert farm.newest() == [(1, {"left": 2}), (1, {"left": 4})]
    farm.end(3)
    assert (1, {"again": 3}) in farm.newest()


def test_the_last_rank_ends_the_group_though_it_was_added() -> None:
    farm = grown()
    for rank in (0, 1, 2, 3):
        farm.end(rank)
    farm.newest()
    farm.add(4, end=4, died=True, crashed=False)
    assert farm.newest() == [(0, {"over": PEERS_LOST}), (1, {"gone": 4}), (1, {"over": PEERS_LOST})]


def test_a_node_joins_a_group_and_is_lost_again() -> None:
    farm = rendering()
    farm.take(0, done=1)
    farm.requested.add(2)
    farm.coordinator.admit(2)
    farm.coordinator.take(2, {"more": 2})
    assert farm.newest() == [(2, {"added": [4, 5], "request": 2})]
    farm.coordinator.take(2, {"start": 4})
    farm.coordinator.take(2, {"ready": 4, "request": 2, "lost": False})
    farm.ready(0, 1, 2, 3, request=2)
    assert farm.newest()[-1] == (2, {"epoch": 2, "ranks": [0, 1, 2, 3, 4], "first": 0})
    farm.coordinator.lose(2)
    assert farm.lost == [2]
    broken = {"broken": 2, "members": [0, 1, 2, 3]}
    assert farm.newest() == [(0, broken), (1, broken)]
    farm.ready(0, 1, 2, 3, request=2)
    farm.newest()
    # One that is lost before it has any rank, while the group is idle.
    farm.take(0, done=2)
    farm.coordinator.admit(3)
    farm.coordinator.lose(3)
    assert farm.newest() == [] and farm.lost == [2, 3]


def test_a_node_speaks_for_its_own_ranks_only() -> None:
    farm = rendering()
    for message in (
        {"end": 0, "died": True, "crashed": True},
        {"ready": 0, "lost": True, "request": 1},
        {"start": 7},
        {"ready": 2, "lost": "no", "request": None},
        {"over": 0},
        {"epoch": 5, "ranks": [3]},
        {},
    ):
        farm.coordinator.take(1, message)
    assert farm.newest() == []
