"""Init images travel by the farm's store."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from infra.store.local import LocalStore
from jobs.db.submission import BatchItem, resolved
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
    items = _items(tmp_path / "here.png", 3)
    upload_inputs(items, images)
    assert len(list(images.entries("inputs/"))) == 1
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
        upload_inputs(items, LocalStore(tmp_path / "store"))


def test_a_lora_travels_as_an_init_image_does(tmp_path: Path) -> None:
    save_file({"unet.a.lora_A.weight": np.zeros(2, np.float32)}, tmp_path / "brand.safetensors")
    spec = Spec.from_mapping({"prompt": "x", "lora": [f"{tmp_path / 'brand.safetensors'}:0.5"]})
    images = LocalStore(tmp_path / "store")
    upload_inputs([BatchItem(row=1, custom_id="a", spec=spec)], images)
    (tmp_path / "brand.safetensors").unlink()
    there = download_input(Spec.from_mapping(spec.to_dict()), images, tmp_path / "node")
    assert there.digest("m") == spec.digest("m")
    assert Path(there.lora[0].path).is_relative_to(tmp_path / "node")
    assert Path(there.lora[0].path).is_file()


def test_a_control_picture_travels_and_its_network_does_not(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "edges.png")
    save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    parts = {"control": [f"canny={tmp_path / 'edges.png'}:0.5"], "controlnet": [str(tmp_path)]}
    spec = Spec.from_mapping({"prompt": "x", "size": "64x64"} | parts)
    store = LocalStore(tmp_path / "store")
    upload_inputs([BatchItem(row=0, custom_id="0", spec=spec)], store)
    there = download_input(spec, store, tmp_path / "node")
    assert there.digest("m") == spec.digest("m") and there.controlnet == spec.controlnet
    assert Path(there.control[0].path).is_relative_to(tmp_path / "node")
    assert Path(there.control[0].path).is_file()


def test_a_network_beside_the_model_is_named_by_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "edges.png")
    save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    parts = {"control": ["canny=edges.png"], "controlnet": ["."], "dtype": "float32"}
    spec = Spec.from_mapping({"prompt": "x", "size": "64x64"} | parts)
    stored = resolved(spec, None)
    assert Path(stored.controlnet[0].path) == tmp_path and stored.digest("m") == spec.digest("m")


def test_a_reference_travels(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    spec = Spec.from_mapping({"prompt": "x", "reference": [str(tmp_path / "photo.png")]})
    store = LocalStore(tmp_path / "store")
    upload_inputs([BatchItem(row=0, custom_id="0", spec=spec)], store)
    there = download_input(Spec.from_mapping(spec.to_dict()), store, tmp_path / "node")
    assert there.digest("m") == spec.digest("m")
    assert Path(there.reference[0].path).is_relative_to(tmp_path / "node")


def test_an_enlarger_travels(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "net.safetensors")
    spec = Spec.from_mapping({"prompt": "x", "enlarger": str(tmp_path / "net.safetensors")})
    store = LocalStore(tmp_path / "store")
    upload_inputs([BatchItem(row=0, custom_id="0", spec=spec)], store)
    there = download_input(Spec.from_mapping(spec.to_dict()), store, tmp_path / "node")
    assert there.digest("m") == spec.digest("m") and there.enlarger is not None
    assert Path(there.enlarger.path).is_relative_to(tmp_path / "node") and Path(there.enlarger.path).is_file()


def test_a_mask_travels_with_its_init_image(tmp_path: Path) -> None:
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photo.png")
    Image.new("L", (256, 256), 255).save(tmp_path / "mask.png")
    names = {"init": str(tmp_path / "photo.png"), "mask": str(tmp_path / "mask.png")}
    spec = Spec.from_mapping({"prompt": "a vase"} | names)
    images = LocalStore(tmp_path / "store")
    upload_inputs([BatchItem(row=0, custom_id="0", spec=spec)], images)
    for name in names.values():
        Path(name).unlink()
    there = download_input(spec, images, tmp_path / "node")
    assert there.digest("m") == spec.digest("m") and there.kept is not None
    kept = there.kept.kept(Rect(y=0, x=0, height=256, width=256), 256, 256)
    assert kept.shape == (256, 256, 4) and kept[..., 3].max() == 0


def test_an_input_that_the_store_lost_is_an_error_of_the_job_and_no_outage(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "here.png")
    (item,) = _items(tmp_path / "here.png")
    with pytest.raises(BadInput, match=r"^init: .* is not in the farm's store any more .*; submit the image"):
        download_input(item.spec, LocalStore(tmp_path / "empty"), tmp_path / "node")


def test_a_learned_word_travels_as_a_lora_does(tmp_path: Path) -> None:
    save_file({"<cat>": np.zeros((2, 8), np.float32)}, tmp_path / "cat.safetensors")
    spec = Spec.from_mapping({"prompt": "x", "embedding": [str(tmp_path / "cat.safetensors")]})
    images = LocalStore(tmp_path / "store")
    upload_inputs([BatchItem(row=1, custom_id="a", spec=spec)], images)
    (tmp_path / "cat.safetensors").unlink()
    there = download_input(Spec.from_mapping(spec.to_dict()), images, tmp_path / "node")
    assert there.digest("m") == spec.digest("m") and there.embedding[0].word == "<cat>"
    assert Path(there.embedding[0].path).is_relative_to(tmp_path / "node")
