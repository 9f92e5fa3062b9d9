"""A farm renders with a model and its refiner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sqlalchemy import select

from infra.database import Database
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs
from render.distributed import SingleRankGroup
from render.engine import render_image
from render.models import find_model_paths, load_models, model_info
from render.spec import Spec
from tests.render.models.tiny_folders import save_refiner, save_sdxl
from tests.support.cli import wait_until
from tests.support.machines import Machines
from tests.support.sinks import MemorySink


@pytest.fixture
def machines(database: Database, tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, database.engine.url.render_as_string(hide_password=False))
    yield made
    made.shut_down()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_refined_image_is_that_of_one_rank(machines: Machines, database: Database, tmp_path: Path) -> None:
    model, refiner = save_sdxl(tmp_path / "model"), save_refiner(tmp_path / "refiner")
    spec = Spec(prompt="a red vase", width=128, height=128, steps=5, model=str(model), refiner=str(refiner))
    machines.boot("n1", slots=2, wait=False)
    submit(
        database,
        iter([BatchItem(row=1, custom_id="vase", spec=spec)]),
        "vase",
        JobOptions(owner="a", ranks=2),
    )
    torch.set_num_threads(1)
    folders = find_model_paths(spec.model, spec.refiner)
    adapter, network = load_models(folders, torch.device("cpu"), "float32", model_info(folders))
    alone = render_image(
        spec, adapter, SingleRankGroup(), MemorySink(), device=torch.device("cpu"), refiner=network
    )

    def done() -> str | None:
        with database.read() as connection:
            found = connection.execute(select(jobs.c.root).where(jobs.c.digest == alone.digest))
            root: str | None = found.scalar_one()
        return root

    assert wait_until(done, 120) == alone.root
