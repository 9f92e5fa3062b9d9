"""A group takes ranks in while it renders, and gives some up again: each image has one rank's bits."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from render.errors import GroupLost
from render.events import EpochBegan, Event, NodeLost, OnEvent, RankLeft, RankStarted, StepDone, ignore_event
from render.launch.added_ranks import AddedRank
from render.launch.rank_group import RankGroup
from render.launch.rendezvous_config import Rendezvous
from render.launch.request import Request
from render.models.folder import read_model_info, resolve_model
from render.models.model_paths import ModelPaths
from render.output.manifest import KEY, parse_manifest
from render.spec import Spec
from tests.support.oracle import roots_here

SPEC = Spec(prompt="a red vase", width=256, height=256, steps=12, strength=1.0, seed=3)
ADDRESS = "127.0.0.2"
"""Of this machine, and not the address at which everything else listens."""
MOST_IMAGES = 100
"""A group that has not changed within so many images never does."""


def request_for(out: Path, spec: Spec = SPEC) -> Request:
    model = resolve_model("builtin")
    return Request(
        spec=spec.to_dict(),
        folders=ModelPaths(model=model),
        info=read_model_info(model),
        device="cpu",
        out=str(out),
        last=False,
    )


@dataclass
class Growing:
    """A group that began with some ranks, and what it has told."""

    folder: Path
    group: RankGroup
    ranks: int
    """Those that render together now."""
    kill: set[int] = field(default_factory=set)
    """Ranks that are killed as soon as they have started."""
    left: list[RankLeft] = field(default_factory=list)
    on_event: OnEvent = ignore_event
    started: int = 0
    images: int = 0

    def root(self, on_step: Callable[[], None] = lambda: None, spec: Spec = SPEC) -> str:
        """Render an image once more; `on_step` is called after the second step."""
        steps = 0
        self.images += 1
        out = self.folder / str(self.images)

        def on_event(event: Event) -> None:
            nonlocal steps
            self._take(event)
            self.on_event(event)
            steps += isinstance(event, StepDone)
            if steps == 2 and isinstance(event, StepDone):
                on_step()

        self.group.render(request_for(out, spec), on_event)
        return parse_manifest((out / KEY).read_bytes(), "test").root

    def until(self, true: Callable[[], bool], wanted: str) -> None:
        """Render until the group has changed."""
        for _ in range(MOST_IMAGES):
            if true():
                return
            assert self.root() == wanted
        raise AssertionError("the group has not changed")

    def add(self, local_ranks: Sequence[int]) -> None:
        self.group.add([AddedRank(local_rank=each, slot=each) for each in local_ranks])

    def _take(self, event: Event) -> None:
        match event:
            case RankStarted():
                self.started += 1
                if event.rank in self.kill:
                    os.kill(event.pid, signal.SIGKILL)
            case EpochBegan():
                self.ranks = event.ranks
            case RankLeft():
                self.left.append(event)


@contextmanager
def growing(folder: Path, ranks: int) -> Iterator[Growing]:
    group = RankGroup(ranks)
    try:
        yield Growing(folder, group, ranks)
    finally:
        group.close()


@pytest.fixture(scope="module")
def wanted() -> str:
    """The oracle: one rank."""
    (root,) = roots_here([SPEC])
    return root


@pytest.mark.timeout(300)
def test_a_rank_alone_becomes_four_and_then_two(tmp_path: Path, wanted: str) -> None:
    with growing(tmp_path, 1) as farm:
        # One of them dies before it has joined, and nobody else notices.
        farm.kill = {1}
        assert farm.root(lambda: farm.add([1, 2, 3, 4])) == wanted
        farm.until(lambda: farm.ranks == 4 and bool(farm.left), wanted)
        assert [(each.local_rank, each.asked) for each in farm.left] == [(1, False)]
        assert farm.root(lambda: farm.group.remove([3, 4])) == wanted
        farm.until(lambda: len(farm.left) == 3 and farm.ranks == 2, wanted)
        assert sorted(each.local_rank for each in farm.left[1:]) == [3, 4]
        assert all(each.asked for each in farm.left[1:]) and farm.started == 5
        assert farm.root() == wanted


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ranks_are_killed_while_others_come_and_go(tmp_path: Path, wanted: str) -> None:
    with growing(tmp_path, 2) as farm:
        assert farm.root(lambda: farm.add([2, 3])) == wanted
        farm.until(lambda: farm.ranks == 4, wanted)

        def kill_and_remove() -> None:
            # Rank 1 is torchrun's, and has a successor; rank 2 was added, and has none.
            running = farm.group._running
            assert running is not None
            for rank in (1, 2):
                os.kill(running._pids[rank], signal.SIGKILL)
            farm.group.remove([3])
            farm.add([4])

        assert farm.root(kill_and_remove) == wanted
        farm.until(lambda: {each.rank for each in farm.left} == {2, 3} and farm.ranks == 3, wanted)
        # The last one of torchrun's stays, whatever it is told.
        assert farm.root(lambda: farm.group.remove([0, 1, 4])) == wanted
        farm.until(lambda: farm.ranks == 1 and len(farm.left) == 4, wanted)
        assert farm.root() == wanted


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ranks_of_another_node_join_and_the_node_leaves(tmp_path: Path) -> None:
    long = Spec(prompt="a red vase", width=256, height=256, steps=300, strength=1.0, seed=3)
    with socket.create_server((ADDRESS, 0)) as free:
        port = free.getsockname()[1]
    meeting = Rendezvous(host=ADDRESS, port=port, secret=secrets.token_hex(32), interface="lo")
    group = RankGroup(1, rendezvous=Rendezvous(opens=True, interface="lo"))
    other = RankGroup(2, rendezvous=replace(meeting, nodes=2, place=1, joins=True, moves=True))
    lost: list[int] = []
    sizes: list[int] = []
    steps_of_three = 0

    def leave() -> None:
        other.leave()
        other.close()

    def follow(event: Event) -> None:
        nonlocal steps_of_three
        match event:
            case NodeLost():
                lost.append(event.node)
            case EpochBegan():
                sizes.append(event.ranks)
            case StepDone():
                steps_of_three += farm.ranks == 3
                if steps_of_three == 5 and farm.ranks == 3:
                    pool.submit(leave)

    with contextlib.closing(group), contextlib.closing(other), ThreadPoolExecutor(2) as pool:
        farm = Growing(tmp_path, group, 1, on_event=follow)
        # The numbers of the two nodes' requests differ from here on.
        farm.root()
        ended = pool.submit(other.render, request_for(tmp_path / "2", long))
        root = farm.root(lambda: group.open(meeting), long)
        assert lost == [1] and sizes[-1] == 1 and 3 in sizes
        # Its ranks were ended in the middle of the image.
        assert isinstance(ended.exception(60), GroupLost)
    assert [root] == roots_here([long])
