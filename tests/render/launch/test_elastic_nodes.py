"""A real group over two nodes loses a rank and then a node: it finishes its images, with one rank's bits."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from render.errors import GroupLost
from render.events import EpochBegan, Event, NodeLost, RankStarted, StepDone
from render.launch.rank_group import RankGroup
from render.launch.rendezvous_config import Rendezvous
from render.launch.request import Request
from render.models.folder import read_model_info, resolve_model
from render.models.model_paths import ModelPaths
from render.output.manifest import KEY, parse_manifest
from render.spec import Spec
from tests.support.oracle import roots_here

# Of this machine, and not the address at which everything else listens.
ADDRESS = "127.0.0.2"
SPEC = Spec(prompt="a red vase", width=384, height=256, steps=6, seed=3)


class Nodes:
    """The nodes of a group, each with one rank; all of them on this machine."""

    def __init__(self, count: int) -> None:
        with socket.create_server((ADDRESS, 0)) as free:
            port = free.getsockname()[1]
        secret = secrets.token_hex(32)
        self.groups = [
            RankGroup(
                1,
                rendezvous=Rendezvous(
                    nodes=count, place=place, host=ADDRESS, port=port, interface="lo", secret=secret
                ),
            )
            for place in range(count)
        ]
        self.pids: dict[int, int] = {}
        self.events: list[Event] = []
        """Of all nodes, without the steps."""

    def root(self, out: Path, on_step: Callable[[int], None]) -> str:
        """Render an image on the nodes that are left; `on_step` gets the steps that are done by then."""
        steps = 0

        def on_event(event: Event, place: int) -> None:
            nonlocal steps
            if isinstance(event, RankStarted):
                self.pids[event.rank] = event.pid
            if not isinstance(event, StepDone):
                self.events.append(event)
            elif place == 0:
                steps += 1
                on_step(steps)

        def render(place: int) -> None:
            # One that is killed meanwhile has lost its group.
            with contextlib.suppress(GroupLost) if place else contextlib.nullcontext():
                self.groups[place].render(request, lambda event: on_event(event, place))

        model = resolve_model("builtin")
        request = Request(
            spec=SPEC.to_dict(),
            folders=ModelPaths(model=model),
            info=read_model_info(model),
            device="cpu",
            out=str(out),
            last=False,
        )
        with ThreadPoolExecutor(len(self.groups)) as pool:
            for ended in [pool.submit(render, place) for place in range(len(self.groups))]:
                ended.result()
        return parse_manifest((out / KEY).read_bytes(), "test").root

    def kill_node(self, place: int) -> None:
        """SIGKILL to the launcher of a node, with which all of its processes end."""
        running = self.groups[place]._running
        assert running is not None
        running._process.kill()

    def found(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def close(self) -> None:
        for group in self.groups:
            group.close()


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    made = Nodes(count)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_group_goes_on_without_a_rank_of_another_node_and_then_without_the_node(tmp_path: Path) -> None:
    (wanted,) = roots_here([SPEC])
    with nodes(2) as group:

        def kill_rank(step: int) -> None:
            if step == 2:
                os.kill(group.pids[1], signal.SIGKILL)

        def kill_node(step: int) -> None:
            if step == 2:
                group.kill_node(1)

        assert group.root(tmp_path / "1", kill_rank) == wanted
        assert group.found(EpochBegan) and not group.found(NodeLost)
        assert group.root(tmp_path / "2", kill_node) == wanted
        assert group.found(NodeLost) == [NodeLost(node=1)]
        # Nobody has started anything anew: one rank on the first node, two on the other.
        assert sorted(event.rank for event in group.found(RankStarted)) == [0, 1, 1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [{1: [0]}, {2: [1, 2]}, {2: [0, 1], 5: [2]}, {3: [0, 2]}])
def test_ranks_of_three_nodes_die_one_after_another_and_at_once(
    tmp_path: Path, kills: dict[int, list[int]]
) -> None:
    (wanted,) = roots_here([SPEC])
    with nodes(3) as group:

        def kill(step: int) -> None:
            for rank in kills.get(step, ()):
                os.kill(group.pids[rank], signal.SIGKILL)

        assert group.root(tmp_path / "1", kill) == wanted
        assert group.root(tmp_path / "2", lambda step: None) == wanted
        assert not group.found(NodeLost)
