"""Which ranks render together, when ranks die, come back and end in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from render.launch.epochs import Epochs


def started(ranks: int) -> Epochs:
    epochs = Epochs(ranks)
    for rank in range(ranks):
        epochs.start(rank)
        epochs.ready(rank)
    return epochs


def test_the_first_epoch_waits_for_everybody() -> None:
    epochs = Epochs(2)
    epochs.start(0)
    epochs.ready(0)
    assert epochs.next() is None
    epochs.start(1)
    assert epochs.next() is None
    epochs.ready(1)
    first = epochs.next()
    assert first is not None and (first.number, first.ranks) == (1, (0, 1))


def test_the_others_go_on_without_a_rank_and_take_it_back_between_two_steps() -> None:
    epochs = started(3)
    epochs.next()
    epochs.end(1, died=True)
    assert epochs.broken and epochs.survive(1)
    epochs.start(1)
    epochs.ready(0)
    assert epochs.next() is None
    epochs.ready(2)
    second = epochs.next()
    assert second is not None and second.ranks == (0, 2) and not epochs.broken
    epochs.ready(1)
    assert epochs.joining and epochs.next() is None
    epochs.ready(0)
    epochs.ready(2)
    third = epochs.next()
    assert third is not None and third.ranks == (0, 1, 2) and not epochs.joining


def test_a_rank_leaves_between_two_steps() -> None:
    epochs = started(2)
    epochs.next()
    assert not epochs.joining
    epochs.leave(1)
    assert epochs.joining and not epochs.broken
    epochs.ready(1)
    assert epochs.next() is None and epochs.dismissed() == set()
    epochs.ready(0)
    second = epochs.next()
    assert second is not None and second.ranks == (0,) and not epochs.joining
    assert epochs.dismissed() == {1} and epochs.dismissed() == set()
    epochs.leave(0)
    assert not epochs.joining, "the last one stays"


def test_nobody_joins_ranks_that_are_done() -> None:
    epochs = started(2)
    epochs.next()
    epochs.end(1, died=True)
    epochs.start(1)
    epochs.ready(0)
    epochs.next()
    assert not epochs.over
    epochs.end(0, died=False)
    epochs.ready(1)
    assert epochs.over and epochs.next() is None


@given(st.data())
def test_an_epoch_has_the_living_that_are_ready_and_all_before_that_stay(
    data: st.DataObject,
) -> None:
    ranks = data.draw(st.integers(2, 5))
    epochs = started(ranks)
    assert epochs.next() is not None
    alive, ready, removed, numbers = set(range(ranks)), set[int](), set[int](), [1]
    for _ in range(data.draw(st.integers(1, 30))):
        rank = data.draw(st.integers(0, ranks - 1))
        if rank not in alive:
            epochs.start(rank)
            alive.add(rank)
        elif data.draw(st.booleans()):
            epochs.ready(rank)
            ready.add(rank)
        elif data.draw(st.booleans()):
            epochs.leave(rank)
            removed.add(rank)
        else:
            epochs.end(rank, died=True)
            for those in (alive, ready, removed):
                those.discard(rank)
        running = epochs.members
        began = epochs.next()
        if began is None:
            assert not running or not running <= ready
        else:
            numbers.append(began.number)
            # The last ones stay, whatever they are told.
            assert set(began.ranks) == (ready - removed or ready) and running <= ready
            ready -= set(began.ranks)
        dismissed = epochs.dismissed()
        assert dismissed <= removed and not dismissed & epochs.members
        ready -= dismissed
    assert numbers == sorted(set(numbers))


def test_nobody_waits_for_the_successor_of_a_rank_that_died_after_the_others_work_was_done() -> None:
    epochs = Epochs(2)
    for rank in (0, 1):
        epochs.start(rank)
        epochs.ready(rank)
    assert epochs.next() is not None
    epochs.end(1, died=True)
    epochs.start(1)
    epochs.end(0, died=False)
    assert epochs.over
