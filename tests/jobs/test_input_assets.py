"""Init images travel by the farm's store."""

from pathlib import Path

import pytest
from PIL import Image

from infra.store.local import LocalStore
from jobs.db.submission import BatchItem
from jobs.input_assets import download_input, upload_inputs
from render.errors import BadInput
from render.plan.geometry import Rect
from render.spec import Spec


def _items(path: Path, count: int = 1) -> list[BatchItem]:
    spec = Spec.from_mapping({"prompt": "a vase", "init": str(path)})
    return [BatchItem(row=row, custom_id=str(row), spec=spec) for row in range(count)]


def test_a_node_downloads_the_image_that_was_submitted(tmp_path: Path) -> None:
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "here.png")
    images = LocalStore(tmp_path / "store")
    items = list(upload_inputs(_items(tmp_path / "here.png", 3), images))
    assert len(items) == 3 and len(list(images.entries("inputs/"))) == 1
    (tmp_path / "here.png").unlink()
    there = download_input(items[0].spec, images, tmp_path / "node")
    assert there.init is not None and Path(there.init.path).is_relative_to(tmp_path / "node")
    assert there.digest("m") == items[0].spec.digest("m")
    assert there.init.pixels(Rect(y=0, x=0, height=2, width=2), 256, 256).shape == (2, 2, 3)
    assert download_input(there, images, tmp_path / "node") == there


def test_a_missing_init_image_is_refused_before_anything_is_queued(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "here.png")
    items = _items(tmp_path / "here.png")
    (tmp_path / "here.png").unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        list(upload_inputs(items, LocalStore(tmp_path / "store")))
