"""Ranks of real groups are killed in the middle of an image: the others finish it, with the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from render import ParallelizedDiffusionPipeline
from render.events import EpochBegan, Event, RankStarted, StepDone, ignore_event

SIZE, STEPS = (384, 256), 6


class Killer:
    """Kills ranks when steps are done, and notes what the group has reported."""

    def __init__(self, kills: dict[int, Sequence[int]]) -> None:
        """`kills` are the ranks to kill after so many steps of the whole image."""
        self._kills = kills
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
                    os.kill(self._pids[rank], signal.SIGKILL)


def begin(ranks: int) -> ParallelizedDiffusionPipeline:
    pipeline = ParallelizedDiffusionPipeline("builtin", num_modules=ranks, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def root(
    pipeline: ParallelizedDiffusionPipeline, on_event: Callable[[Event], None] = ignore_event, **options: Any
) -> str:
    values = {"width": SIZE[0], "height": SIZE[1], "num_inference_steps": STEPS, "seed": 3}
    found = pipeline("a red vase", **(values | options), on_event=on_event)
    return found.manifests[0].root


@pytest.fixture(scope="module")
def alone() -> Iterator[ParallelizedDiffusionPipeline]:
    """The oracle: one rank."""
    with begin(1) as made:
        yield made


def test_the_others_finish_an_image_without_the_rank_that_was_killed(
    alone: ParallelizedDiffusionPipeline,
) -> None:
    killer, wanted = Killer({2: [1]}), root(alone)
    few: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 1, "seed": 3}
    with begin(2) as pipeline:
        assert root(pipeline, killer) == wanted
        # One rank goes on alone, or its successor was there before it.
        assert killer.epochs[0] in (1, 2)
        # The ranks that are there share these out: the successor of the dead one may have come back, or not.
        roots = [manifest.root for manifest in pipeline(["a cup", "a jug", "a pot"], **few).manifests]
        assert root(pipeline) == wanted
    assert roots == [manifest.root for manifest in alone(["a cup", "a jug", "a pot"], **few).manifests]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [{1: [0]}, {5: [1, 2]}, {2: [0], 9: [2], 14: [0, 1]}])
def test_ranks_die_one_after_another_and_at_once(
    alone: ParallelizedDiffusionPipeline, kills: dict[int, Sequence[int]]
) -> None:
    killer = Killer(kills)
    options = {"num_inference_steps": 10, "strength": 1.0}
    with begin(3) as pipeline:
        assert root(pipeline, killer, **options) == root(alone, **options)
    assert killer.epochs
