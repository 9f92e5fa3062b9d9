"""Inputs of jobs: `gc` and whoever submits at the same moment."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import func, select

from infra.database import Database
from infra.settings import Settings
from infra.store.local import LocalStore
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, Preparation, insert_batch
from jobs.db.tables import batches, jobs
from jobs.farm import Farm
from jobs.input_assets import upload_inputs
from jobs.unneeded import _inputs
from render.errors import BadInput
from render.spec import Spec

OPTIONS = JobOptions(owner="me")


@pytest.fixture
def farm(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    settings = Settings(store_url=str(tmp_path / "store"))
    return Farm(settings=settings, database=database, url="")


def _stored(tmp_path: Path) -> Path:
    """An old input of the store that no job needs yet."""
    item = _item(tmp_path)
    upload_inputs([item], LocalStore(tmp_path / "store"))
    assert item.spec.init is not None
    return tmp_path / "store" / "inputs" / item.spec.init.digest


def _item(tmp_path: Path) -> BatchItem:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    spec = Spec.from_mapping({"prompt": "x", "init": str(tmp_path / "a.png"), "tile_size": 64})
    return BatchItem(row=1, custom_id="a", spec=spec)


def _insert(database: Database, item: BatchItem, store_inputs: Callable[[], None]) -> None:
    with Preparation(OPTIONS) as prepared:
        prepared.add(item)
        insert_batch(database, prepared, "a", store_inputs)


def _gc(farm: Farm) -> None:
    for unneeded in _inputs(farm):
        unneeded.delete()


def test_gc_keeps_what_somebody_has_found_there_and_is_about_to_need(farm: Farm, tmp_path: Path) -> None:
    stored = _stored(tmp_path)
    before = _inputs(farm)
    assert [each.reason for each in before] == ["input of no unfinished job"]

    def look() -> None:
        upload_inputs([_item(tmp_path)], LocalStore(tmp_path / "store"))
        for unneeded in before:
            unneeded.delete()
        _gc(farm)

    _insert(farm.database, _item(tmp_path), look)
    assert stored.exists()
    for unneeded in before:
        unneeded.delete()
    _gc(farm)
    assert stored.exists(), "a queued job needs it"
    with farm.database.write() as connection:
        (job,) = connection.execute(select(jobs.c.id)).scalars()
        change_state(connection, job, "queued", "cancelled", "test")
    _gc(farm)
    assert not stored.exists()


def test_what_gc_has_deleted_before_is_stored_again(farm: Farm, tmp_path: Path) -> None:
    stored = _stored(tmp_path)
    _gc(farm)
    assert not stored.exists()
    _insert(
        farm.database,
        _item(tmp_path),
        lambda: upload_inputs([_item(tmp_path)], LocalStore(tmp_path / "store")),
    )
    assert stored.exists()


def test_inputs_that_cannot_be_stored_queue_nothing(farm: Farm, tmp_path: Path) -> None:
    item = _item(tmp_path)

    def lost() -> None:
        (tmp_path / "a.png").unlink()
        upload_inputs([item], LocalStore(tmp_path / "store"))

    with pytest.raises(BadInput, match="cannot be read"):
        _insert(farm.database, item, lost)
    with farm.database.read() as connection:
        assert not connection.execute(select(func.count()).select_from(jobs)).scalar_one()
        assert not connection.execute(select(func.count()).select_from(batches)).scalar_one()
