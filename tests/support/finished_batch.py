"""A batch whose images are finished, without a node: small images of the toy model."""

from pathlib import Path

import pytest
import torch
from sqlalchemy import update

from infra.database import Database, now
from infra.store.local import LocalStore
from jobs.db.schema import upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs
from render.distributed import SingleRankGroup
from render.engine import render_image
from render.models.model_paths import find_model_paths, model_info
from render.output.manifest import KEY, parse_manifest
from render.spec import Spec
from tests.support.models import ToyModel


def finished_batch(
    folder: Path, environment: pytest.MonkeyPatch, custom_ids: tuple[str, ...], done: int
) -> str:
    """A farm in the folder, for this process and the commands that it starts, and its batch.

    Images of 128x96 under their jobs' digests; the first `done` rows are finished.
    """
    for name, value in settings_of(folder).items():
        environment.setenv(name, value)
    return make_batch(folder, custom_ids, done)


def settings_of(folder: Path) -> dict[str, str]:
    """The environment of a command that uses the farm in a folder."""
    return {
        "CHORALE_DATABASE_URL": f"sqlite:///{folder / 'farm.db'}",
        "CHORALE_STORE_URL": f"file://{folder / 'images'}",
    }


def make_batch(folder: Path, custom_ids: tuple[str, ...], done: int) -> str:
    """A farm in the folder, and its batch."""
    images = folder / "images"
    database = Database(settings_of(folder)["CHORALE_DATABASE_URL"])
    upgrade(database)
    specs = [
        Spec(prompt="a vase", seed=seed, width=128, height=96, steps=2, tile_size=64)
        for seed in range(1, len(custom_ids) + 1)
    ]
    items = [
        BatchItem(row=n, custom_id=custom_ids[n - 1], spec=spec) for n, spec in enumerate(specs, start=1)
    ]
    receipt = submit(database, items, "feed.csv", JobOptions(owner="me"))
    for spec in specs[:done]:
        finish(database, images, spec)
    database.close()
    return receipt.batch


def finish(database: Database, images: Path, spec: Spec) -> None:
    """Render the image of a queued job into the store, and call the job done."""
    digest = spec.digest(model_info(find_model_paths("builtin", None)).digest)
    store = LocalStore(images / digest)
    render_image(spec, ToyModel(), SingleRankGroup(), store, device=torch.device("cpu"))
    root = parse_manifest(store.get(KEY), digest).root
    with database.write() as connection:
        mine = update(jobs).where(jobs.c.digest == digest)
        connection.execute(mine.values(state="done", root=root, progress=1.0, started=now(), ended=now()))
