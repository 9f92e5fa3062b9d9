"""Ranks of real groups are killed in the middle of an image: the others finish it, with the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

import pytest

from render import ParallelizedDiffusionPipeline
from render.errors import RenderFailed
from render.events import EpochBegan, Event, RankStarted, StepDone

SIZE, STEPS = (384, 256), 6


class Killer:
    """Kills ranks when steps are done, and notes what the group has reported."""

    def __init__(self, kills: dict[int, Sequence[int]], number: signal.Signals = signal.SIGKILL) -> None:
        """`kills` are the ranks to kill after so many steps of the whole image."""
        self._kills, self._number = kills, number
        self._pids: dict[int, int] = {}
        self._steps = 0
        self.epochs: list[int] = []
        """Ranks of each epoch after the first."""

    def __call__(self, event: Event) -> None:
        match event:
            case RankStarted():
                self._pids[event.rank] = event.pid
            case EpochBegan():
                self.epochs.append(event.ranks)
            case StepDone():
                self._steps += 1
                for rank in self._kills.get(self._steps, ()):
                    os.kill(self._pids[rank], self._number)


@pytest.fixture
def render() -> Callable[..., str]:
    def run(ranks: int, on_event: Callable[[Event], None], **options: object) -> str:
        pipeline = ParallelizedDiffusionPipeline("builtin", num_modules=ranks, device="cpu")
        try:
            values = {"width": SIZE[0], "height": SIZE[1], "num_inference_steps": STEPS, "seed": 3}
            found = pipeline("a red vase", **(values | options), on_event=on_event)
            return str(found.manifests[0].root)
        finally:
            pipeline.close()

    return run


def test_the_others_finish_an_image_without_the_rank_that_was_killed(render: Callable[..., str]) -> None:
    killer = Killer({2: [1]})
    assert render(2, killer) == render(1, lambda event: None)
    assert killer.epochs[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("kills", [{1: [0]}, {5: [1, 2]}, {2: [0], 9: [2], 14: [0, 1]}])
def test_ranks_die_one_after_another_and_at_once(
    render: Callable[..., str], kills: dict[int, Sequence[int]]
) -> None:
    killer = Killer(kills)
    options = {"num_inference_steps": 10, "strength": 1.0}
    assert render(3, killer, **options) == render(1, lambda event: None, **options)
    assert killer.epochs


def test_a_rank_that_is_ended_by_an_error_of_its_own_ends_the_group(render: Callable[..., str]) -> None:
    with pytest.raises(RenderFailed, match="SIGBUS"):
        render(2, Killer({2: [1]}, signal.SIGBUS))
