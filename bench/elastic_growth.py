"""A group grows from one rank to four and shrinks to two inside an image: its cost, and whether bits stay.

Each image begins with one rank. At a random step three more are added, which load the model while it renders;
some steps after they have joined, two leave again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.elastic_image import published_root, request_for, root_of
from bench.table import Row
from render.events import EpochBegan, Event, ImageDone, RankLeft, StepDone
from render.launch.added_ranks import AddedRank
from render.launch.rank_group import RankGroup
from render.spec import Spec

IMAGES = 10
MOST = 4
"""Ranks after the growth; half of them are left in the end."""
SPEC = Spec(prompt="a red vase", width=256, height=256, steps=300, strength=1.0, seed=11)


@dataclass
class Figures:
    """Seconds of each change."""

    joined: list[float] = field(default_factory=list)
    """From the order to the first epoch with all ranks."""
    left: list[float] = field(default_factory=list)
    """From the order to the end of the last process that leaves."""
    pauses: list[float] = field(default_factory=list)
    """From the last step of an epoch to the first one of the next."""
    steps: list[float] = field(default_factory=list)
    """From one step to the next within an epoch."""
    whole: int = 0
    """Images inside of which all of it has happened."""
    wrong: int = 0


class _Image:
    """One image of a group of its own."""

    def __init__(self, draw: random.Random, figures: Figures) -> None:
        self._figures = figures
        self._group = RankGroup(1)
        self._grow_at, self._stay = draw.randint(2, 20), draw.randint(5, 20)
        self._steps = self._steps_of_four = 0
        self._ranks, self._ended = 1, 0
        self._ordered = self._last = 0.0
        self._changed = self._shrinks = self._whole = False

    def run(self, out: Path) -> str:
        """Render it; returns its root."""
        try:
            self._group.render(request_for(SPEC, str(out), last=False), self._take)
        finally:
            self._group.close()
        self._figures.whole += self._whole
        return published_root(out)

    def _take(self, event: Event) -> None:
        moment = time.perf_counter()
        match event:
            case EpochBegan():
                self._changed, self._ranks = True, event.ranks
                if event.ranks == MOST:
                    self._figures.joined.append(moment - self._ordered)
            case RankLeft():
                self._ended += 1
                if self._ended == MOST // 2:
                    self._figures.left.append(moment - self._ordered)
            case StepDone():
                self._step(moment)
            case ImageDone():
                self._whole = self._shrinks and self._ranks == MOST // 2

    def _step(self, moment: float) -> None:
        if self._steps:
            (self._figures.pauses if self._changed else self._figures.steps).append(moment - self._last)
        self._last, self._changed = moment, False
        self._steps += 1
        self._steps_of_four += self._ranks == MOST
        if self._steps == self._grow_at:
            self._ordered = moment
            self._group.add([AddedRank(local_rank=rank, slot=rank) for rank in range(1, MOST)])
        if self._steps_of_four == self._stay and not self._shrinks:
            self._ordered, self._shrinks = moment, True
            self._group.remove(range(MOST // 2, MOST))


def rows(images: int = IMAGES) -> Iterator[Row]:
    """So many images."""
    draw, figures = random.Random(5), Figures()
    with TemporaryDirectory(prefix="elastic-") as name:
        folder = Path(name)
        wanted = root_of(SPEC, folder / "alone")
        for number in range(images):
            figures.wrong += _Image(draw, figures).run(folder / str(number)) != wanted
    yield Row(f"images in which 1 rank became {MOST} and then {MOST // 2}, of {images}", figures.whole, "")
    yield Row("images whose root is not that of one rank", figures.wrong, "<= 0")
    yield Row("without a step while the group changes: seconds, median", median(figures.pauses), "<= 1")
    yield Row("... the slowest", max(figures.pauses), "<= 3")
    yield Row("a step otherwise: seconds, median", median(figures.steps), "")
    yield Row("from the order to the last rank's joining: seconds, median", median(figures.joined), "")
    yield Row("from the order to the end of those that leave: seconds, median", median(figures.left), "")
