"""Ranks of one node's group are killed at random steps: what each death costs, and whether the bits stay."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.table import Row
from render.events import EpochBegan, Event, RankStarted, StepDone
from render.launch.rank_group import RankGroup
from render.launch.request import Request
from render.models.folder import read_model_info, resolve_model
from render.models.model_paths import ModelPaths
from render.output.manifest import KEY, parse_manifest
from render.spec import Spec

RANKS, DEATHS = 4, 30
_SPEC = Spec(prompt="a red vase", width=512, height=512, steps=24, strength=1.0, seed=11)


@dataclass
class _Killer:
    """Kills one rank or two at random steps of an image, and takes the time until the next step is done."""

    draw: random.Random
    pids: dict[int, int]
    deaths: int = 0
    seconds: list[float] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    _killed_at: float | None = None
    _wait: int = 0

    def __call__(self, event: Event) -> None:
        match event:
            case RankStarted():
                self.pids[event.rank] = event.pid
            case EpochBegan():
                self.epochs.append(event.ranks)
            case StepDone():
                self._step(event)

    def _step(self, event: StepDone) -> None:
        if self._killed_at is not None and self.epochs:
            self.seconds.append(time.perf_counter() - self._killed_at)
            self._killed_at = None
            self._wait = self.draw.randint(8, 20)
        self._wait -= 1
        if self._killed_at is None and self._wait <= 0 and self.deaths < DEATHS:
            self.epochs.clear()
            self._killed_at = time.perf_counter()
            for rank in self.draw.sample(sorted(self.pids), self.draw.choice((1, 1, 1, 2))):
                os.kill(self.pids[rank], signal.SIGKILL)
                self.deaths += 1


def rows() -> list[Row]:
    """Images one after another in a warm group, until so many ranks have died."""
    return list(_rows())


def _rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="elastic-") as name:
        folder = Path(name)
        alone = RankGroup(1)
        try:
            wanted = _root(alone, folder / "alone", None)
        finally:
            alone.close()
        killer, roots, images = _Killer(random.Random(7), {}), set[str](), 0
        group = RankGroup(RANKS)
        try:
            while killer.deaths < DEATHS:
                images += 1
                roots.add(_root(group, folder / str(images), killer))
        finally:
            group.close()
    yield Row(f"ranks killed, of {RANKS} that render together, in {images} images", killer.deaths, "")
    yield Row("images whose root is not that of one rank", len(roots - {wanted}), "<= 0")
    yield Row("from a death to the next step: seconds, median", median(killer.seconds), "<= 2")
    yield Row("... the slowest", max(killer.seconds), "<= 3")


def _root(group: RankGroup, out: Path, killer: _Killer | None) -> str:
    model = resolve_model("builtin")
    request = Request(
        spec=_SPEC.to_dict(),
        folders=ModelPaths(model=model),
        info=read_model_info(model),
        device="cpu",
        out=str(out),
        last=killer is None,
    )
    group.render(request, killer or (lambda event: None))
    return parse_manifest((out / KEY).read_bytes(), "bench").root
