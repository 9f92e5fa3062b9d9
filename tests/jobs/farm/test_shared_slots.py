"""A slot renders several jobs at once: the roots of jobs alone, and each ends by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from sqlalchemy import select

from infra.database import Database
from jobs.db.folders import folder_name
from jobs.db.tables import attempts, jobs
from jobs.numerics import local_numerics
from render.denoise.checkpoint import KEY as CHECKPOINT
from render.denoise.checkpoint import Checkpoint
from tests.support.cli import ranks_with, wait_until
from tests.support.machines import Machines
from tests.support.oracle import roots_of

SMALL = {"width": 128, "height": 128, "tile_size": 128, "dtype": "float32"}
KINDS: list[dict[str, Any]] = [
    {"steps": 12},
    {"steps": 5, "sampler": "euler"},
    {"steps": 4, "guidance_scale": 1.0},
    {"steps": 6, "width": 160, "format": "webp"},
    {"steps": 3, "window_batch": 4},
]
LONG_STEPS = 1000
"""Long enough to be interrupted while the others render."""


class Farm(Machines):
    """One slot that renders up to three images at once, and specs as jobs of it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        url = f"sqlite:///{folder / 'farm.db'}"
        super().__init__(folder, url, CHORALE_SLOT_IMAGES="3", CHORALE_WARM_S="5", **environment)
        self.database = Database(url)
        self.folder = folder
        self.specs: dict[str, dict[str, Any]] = {}

    def submit(self, *specs: dict[str, Any]) -> list[str]:
        """Queue them in this order; returns their jobs."""
        path = self.folder / f"batch-{len(self.specs)}.jsonl"
        rows = [
            {"custom_id": str(number), "prompt": f"a vase {len(self.specs) + number}"} | SMALL | spec
            for number, spec in enumerate(specs)
        ]
        path.write_text("\n".join(json.dumps(row) for row in rows))
        made = self.call("submit", str(path), "--ranks", "1")["jobs"]
        found = [str(job["id"]) for job in made]
        self.specs |= {job: self.call("show", job)["spec"] for job in found}
        return found

    def states(self) -> dict[str, str]:
        with self.database.read() as connection:
            return {row.id: row.state for row in connection.execute(select(jobs.c.id, jobs.c.state))}

    def roots(self) -> dict[str, str]:
        with self.database.read() as connection:
            done = select(jobs.c.id, jobs.c.root).where(jobs.c.state == "done")
            return {row.id: row.root for row in connection.execute(done)}

    def most_at_once(self, besides: Sequence[str] = ()) -> int:
        """The most attempts that were active at one moment, without those at some jobs."""
        counted = select(attempts.c.created, attempts.c.ended).where(attempts.c.job.not_in(besides))
        with self.database.read() as connection:
            rows = connection.execute(counted).all()
        return max(sum(each.created <= row.created < (each.ended or 1e12) for each in rows) for row in rows)

    def stopped(self, job: str) -> bool:
        """Whether no attempt at the job is active any more."""
        with self.database.read() as connection:
            active = select(attempts.c.id).where(attempts.c.job == job, attempts.c.ended.is_(None))
            return connection.execute(active).first() is None

    def shut_down(self) -> None:
        super().shut_down()
        self.database.close()


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    made = Farm(tmp_path, CHORALE_STORE_PATIENCE_S="1", CHORALE_CHECKPOINT_S="1000")
    yield made
    made.shut_down()


def poison(checkpoint: Path) -> None:
    """Make the canvas of a checkpoint NaN, and seal it again."""
    with safe_open(checkpoint, "pt") as file:
        identity = json.loads(file.metadata()["chorale"])["identity"]
    found = Checkpoint.unpack(checkpoint.read_bytes(), identity)
    found.canvas.planes.fill_(torch.nan)
    checkpoint.write_bytes(found.pack(identity))


@pytest.mark.slow
def test_jobs_share_a_slot_and_are_cancelled_paused_and_failed_alone(farm: Farm, tmp_path: Path) -> None:
    cancelled, paused, *others = farm.submit({"steps": LONG_STEPS}, {"steps": LONG_STEPS}, *KINDS)
    farm.boot("n1")
    wait_until(lambda: all(farm.states()[job] == "rendering" for job in (cancelled, paused)), 300)
    # The ranks have begun with these two once a third image beside them is done.
    wait_until(lambda: farm.roots(), 300)
    (rank,) = ranks_with(farm.mark)
    farm.call("cancel", cancelled)
    farm.call("pause", paused)
    wait_until(lambda: farm.stopped(cancelled) and farm.stopped(paused), 120)
    (folder,) = (farm.home / "chorale" / "images").glob(f"{farm.call('show', paused)['digest']}*")
    poison(folder / CHECKPOINT)
    others += farm.submit({"steps": 8, "seed": 77})
    farm.call("resume", paused)
    wait_until(lambda: farm.states()[paused] == "failed", 300)
    wait_until(lambda: set(farm.roots()) == set(others), 300)
    assert "not finite" in farm.call("show", paused)["reason"]
    assert farm.states()[cancelled] == "cancelled"
    assert farm.roots() == roots_of({job: farm.specs[job] for job in others}, tmp_path)
    # The image of a cancelled or paused job has left before its attempt is marked as ended.
    assert farm.most_at_once(besides=(cancelled, paused)) <= 3, "no more than were allowed"
    assert ranks_with(farm.mark) in ([rank], []), "one process has rendered all of them"
    with farm.database.read() as connection:
        tried = connection.execute(select(jobs.c.id, jobs.c.fence, jobs.c.attempts, jobs.c.losses)).all()
    assert all(row[1:] == (1, 0, 0) for row in tried if row.id in others), "nobody else was disturbed"


@pytest.mark.slow
def test_forty_mixed_jobs_have_the_roots_of_jobs_alone_whatever_fails_beside_them(
    farm: Farm, tmp_path: Path
) -> None:
    mixed = [KINDS[number % len(KINDS)] | {"seed": 100 + number} for number in range(40)]
    found = farm.submit(*mixed)
    refused = found[7]
    # Nothing can be written where its image belongs.
    images = farm.home / "chorale" / "images"
    images.mkdir(parents=True)
    digest = farm.call("show", refused)["digest"]
    (images / folder_name(digest, local_numerics().identity)).write_text("in the way")
    farm.boot("n1")
    others = [job for job in found if job != refused]
    wait_until(lambda: set(farm.roots()) == set(others), 600)
    assert farm.states()[refused] != "done"
    assert farm.roots() == roots_of({job: farm.specs[job] for job in others}, tmp_path)
    assert farm.most_at_once() == 3


@pytest.mark.slow
def test_images_whose_process_is_killed_are_each_tried_again_alone(farm: Farm, tmp_path: Path) -> None:
    found = farm.submit(*({"steps": 60, "seed": seed} for seed in range(3)))
    farm.boot("n1")
    wait_until(lambda: list(farm.states().values()).count("rendering") == 3, 300)
    wait_until(lambda: all(farm.call("show", job)["progress"] > 0 for job in found), 300)
    farm.kill("render.launch.rank ")
    wait_until(lambda: set(farm.roots()) == set(found), 300)
    assert farm.roots() == roots_of(farm.specs, tmp_path)
    with farm.database.read() as connection:
        tried = connection.execute(select(jobs.c.fence, jobs.c.attempts)).all()
        again = select(attempts.c.created, attempts.c.ended).where(attempts.c.fence == 2)
        alone = connection.execute(again.order_by(attempts.c.created)).all()
    assert [tuple(row) for row in tried] == [(2, 0)] * 3
    assert all(earlier.ended <= later.created for earlier, later in pairwise(alone))
