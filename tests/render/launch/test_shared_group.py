"""Threads that share a rank get the events of their own image, and its end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import pytest

from render.errors import GroupFailed, GroupLost, Stopped
from render.events import Event, ImageDone, ModelLoaded, RankFailed, RankStopped, StepDone
from render.launch.rank_group import RankGroup
from render.launch.request import Request
from render.launch.shared_group import SharedGroup, SharedGroupLost

STEP = StepDone(
    stage=0, step=1, steps=2, timestep=1.0, seconds=1.0, phases={}, exchange_seconds=0.0, model_calls=1,
    border_bytes=0,
)  # fmt: skip


class Script:
    """In place of a group's process: the test says what its rank sends."""

    def __init__(self) -> None:
        self.begun = 0
        self.stopped: list[int] = []
        self.sent: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()

    def begin(self, request: Request) -> int:
        self.begun += 1
        return self.begun

    def receive(self) -> Event | None:
        try:
            event = self.sent.get(timeout=0.01)
        except queue.Empty:
            return None
        if isinstance(event, Exception):
            raise event
        return event

    def stop_request(self, number: int) -> None:
        self.stopped.append(number)


class Threads:
    """Renders images in threads, and pumps the group's events."""

    def __init__(self) -> None:
        self.rank = Script()
        self.group = SharedGroup(cast(RankGroup, self.rank), 3)
        self.events: dict[int, list[Event]] = {}
        self.pool = ThreadPoolExecutor(4)
        self._ended = threading.Event()
        self.pool.submit(self._pump)

    def _pump(self) -> None:
        while not self._ended.is_set():
            self.group.pump()

    def render(self, on_tick: Callable[[], bool] = lambda: False) -> Future[ImageDone]:
        """Begin the next image; its number is that of the call."""
        number = self.rank.begun + 1
        mine = self.events.setdefault(number, [])
        request = cast(Request, None)
        future = self.pool.submit(self.group.render, request, mine.append, on_tick=on_tick)
        while self.rank.begun < number and not future.done():
            pass
        return future

    def close(self) -> None:
        self._ended.set()
        self.pool.shutdown()


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads()
    yield made
    made.close()


def done(image: int) -> ImageDone:
    return ImageDone(digest="", root=f"root {image}", seconds=1.0, image=image)


def test_each_image_has_its_own_events_and_its_own_end(threads: Threads) -> None:
    first, second, third = (threads.render() for _ in range(3))
    for event in (
        ModelLoaded(seconds=1.0),
        replace(STEP, image=2),
        RankFailed(code=3, text="NaN", outage=False, permanent=True, image=1),
        replace(STEP, image=3),
        RankStopped(text="stopped after step 1", image=3),
        done(2),
    ):
        threads.rank.sent.put(event)
    assert second.result(10).root == "root 2"
    with pytest.raises(Stopped):
        third.result(10)
    with pytest.raises(GroupFailed, match="NaN") as failed:
        first.result(10)
    assert failed.value.permanent and not threads.group.broken and threads.group.images == 0
    kinds = {number: [event.kind for event in mine] for number, mine in threads.events.items()}
    assert kinds == {
        1: ["model_loaded", "rank_failed"],
        2: ["model_loaded", "step_done", "image_done"],
        3: ["model_loaded", "step_done", "rank_stopped"],
    }


def test_an_image_that_is_left_is_stopped_and_counts_until_the_rank_has_ended_it(threads: Threads) -> None:
    class Left(Exception):
        pass

    def leave() -> bool:
        raise Left

    kept = threads.render()
    with pytest.raises(Left):
        threads.render(leave).result(10)
    assert threads.rank.stopped == [2] and threads.group.images == 2
    threads.rank.sent.put(RankStopped(text="", image=2))
    threads.rank.sent.put(done(1))
    assert kept.result(10).root == "root 1"
    assert threads.group.images == 0


def test_an_image_is_asked_to_stop_and_waited_for(threads: Threads) -> None:
    asked = threading.Event()

    def stop() -> bool:
        asked.set()
        return True

    stopping = threads.render(stop)
    assert asked.wait(10)
    threads.rank.sent.put(RankStopped(text="stopped after step 3", image=1))
    with pytest.raises(Stopped, match="step 3"):
        stopping.result(10)
    assert set(threads.rank.stopped) == {1}


@pytest.mark.parametrize(("images", "error"), [(1, GroupLost), (2, SharedGroupLost)])
def test_a_group_that_breaks_off_ends_all_images_and_takes_no_other(
    threads: Threads, images: int, error: type[Exception]
) -> None:
    begun = [threads.render() for _ in range(images)]
    threads.rank.sent.put(GroupLost("killed"))
    for each in begun:
        with pytest.raises(error, match="killed") as lost:
            each.result(10)
        assert isinstance(lost.value, SharedGroupLost) is (error is SharedGroupLost)
    with pytest.raises(SharedGroupLost):
        threads.render().result(10)
    assert threads.group.broken
