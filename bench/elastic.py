"""Ranks of one node's group are killed at random steps: what each death costs, and whether the bits stay.

`python -m bench.elastic` measures groups that grow (`bench.elastic_growth`) and groups of two nodes as well
(`bench.elastic_nodes`, as root); it prints the section that `make bench ARGS="elastic"` writes.
"""

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

import click

from bench import elastic_growth, elastic_nodes
from bench.elastic_image import SPEC, published_root, request_for, root_of
from bench.table import Row, as_markdown
from render.events import EpochBegan, Event, RankStarted, StepDone
from render.launch.rank_group import RankGroup

RANKS, DEATHS = 4, 30


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
    """Images one after another in a warm group, until so many ranks have died; then groups that grow and
    shrink, and groups of two nodes."""
    return [*_rows(), *elastic_growth.rows(), *elastic_nodes.rows()]


@click.command()
@click.option("--deaths", default=DEATHS, show_default=True, help="Ranks that die in a group of one node.")
@click.option("--grown", default=elastic_growth.IMAGES, show_default=True, help="Images of groups that grow.")
@click.option("--images", default=15, show_default=True, help="Images of groups of two nodes.")
def main(deaths: int, grown: int, images: int) -> None:
    """Print the figures."""
    found = [*(_rows(deaths) if deaths else ()), *(elastic_growth.rows(grown) if grown else ())]
    found += elastic_nodes.rows(images) if images else ()
    click.echo(as_markdown("Groups that lose and gain ranks", "python -m bench.elastic", found))


def _rows(deaths: int = DEATHS) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="elastic-") as name:
        folder = Path(name)
        wanted = root_of(SPEC, folder / "alone")
        killer, roots, images = _Killer(random.Random(7), {}), set[str](), 0
        group = RankGroup(RANKS)
        try:
            while killer.deaths < deaths:
                images += 1
                roots.add(_root(group, folder / str(images), killer))
        finally:
            group.close()
    yield Row(f"ranks killed, of {RANKS} that render together, in {images} images", killer.deaths, "")
    yield Row("images whose root is not that of one rank", len(roots - {wanted}), "<= 0")
    yield Row("from a death to the next step: seconds, median", median(killer.seconds), "<= 2")
    yield Row("... the slowest", max(killer.seconds), "<= 3")


def _root(group: RankGroup, out: Path, killer: _Killer) -> str:
    group.render(request_for(SPEC, str(out), last=False), killer)
    return published_root(out)


if __name__ == "__main__":
    main()
