"""The pyramid: compared with numpy over the whole image, and with one rank."""

import io
import json
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
from PIL import Image

from infra.store.local import LocalStore
from render.canvas import LatentRegion
from render.distributed import SingleRankGroup
from render.engine import render_image
from render.errors import BadInput, RenderFailed
from render.output.export import export_image
from render.output.image_metadata import read_parameters
from render.output.manifest import Manifest, parse_manifest
from render.output.pyramid import publish_pyramid
from render.output.seams import LineDifferences, add_block
from render.output.verify import verify_image
from render.plan.geometry import Rect
from render.plan.plan import Plan, make_plan
from render.plan.topology import Topology
from render.spec import Spec
from tests.support.groups import run_ranks
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
SIZES = [(1000, 616), (512, 512), (520, 1032), (2048, 40), (8, 8), (1024, 1024)]


def latents_for(spec: Spec) -> LatentRegion:
    draw = torch.Generator().manual_seed(1)
    canvas = Topology(height=spec.height // 8, width=spec.width // 8, wrap_y=spec.wrap_y, wrap_x=spec.wrap_x)
    latents = torch.randn((4, canvas.height, canvas.width), generator=draw)
    return LatentRegion(latents=latents, area=canvas.whole, canvas=canvas)


def plan_of(spec: Spec, ranks: int = 1) -> Plan:
    return make_plan(spec, ToyModel().info, ranks)


def level_of(files: dict[str, bytes], level: int, width: int, height: int, side: int) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for key, data in files.items():
        if key.startswith(f"image_files/{level}/"):
            col, row = map(int, Path(key).stem.split("_"))
            tile = np.array(Image.open(io.BytesIO(data)))
            image[row * side : row * side + tile.shape[0], col * side : col * side + tile.shape[1]] = tile
    return image


def box(image: np.ndarray) -> np.ndarray:
    """(a + b + c + d + 2) >> 2 over the whole image, edges repeated."""
    p = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge").astype(int)
    return ((p[0::2, 0::2] + p[1::2, 0::2] + p[0::2, 1::2] + p[1::2, 1::2] + 2) >> 2).astype(np.uint8)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("tile", [64, 512])
def test_every_level_is_the_box_filter_of_the_next_larger_one(width: int, height: int, tile: int) -> None:
    spec = Spec(prompt="x", width=width, height=height, tile_size=tile)
    model, latents, sink = ToyModel(), latents_for(spec), MemorySink()
    report = publish_pyramid(latents, model, plan_of(spec), SingleRankGroup(), sink, device=CPU)
    whole = (model.decode(latents.latents[None])[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    layout = report.layout
    expected = whole
    for level in range(layout.top_level, -1, -1):
        size = layout.size_at(level)
        assert expected.shape[:2] == size[::-1]
        assert np.array_equal(level_of(sink.files, level, *size, tile), expected)
        expected = box(expected)
    columns, rows = LineDifferences(report.columns.lines), LineDifferences(report.rows.lines)
    add_block(columns, rows, Rect(y=0, x=0, height=height, width=width), whole)
    for measured, expected_steps in ((report.columns, columns), (report.rows, rows)):
        assert np.array_equal(measured.absolute, expected_steps.absolute)
        assert np.array_equal(measured.signed, expected_steps.signed)
    assert (report.darkest, report.brightest) == (whole.min(), whole.max())


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_do_not_change_a_byte(width: int, height: int, ranks: int) -> None:
    spec = Spec(prompt="x", width=width, height=height, tile_size=64)
    alone, together = MemorySink(), MemorySink()
    report = publish_pyramid(
        latents_for(spec), ToyModel(), plan_of(spec), SingleRankGroup(), alone, device=CPU
    )
    others = run_ranks(
        ranks,
        lambda group: publish_pyramid(
            latents_for(spec), ToyModel(), plan_of(spec, ranks), group, together, device=CPU
        ),
    )
    assert together.files == alone.files
    assert all(other.tiles == report.tiles for other in others)
    assert all(np.array_equal(other.columns.signed, report.columns.signed) for other in others)


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_images_are_marked_as_generated(form: str) -> None:
    spec = Spec(prompt="a red vase & more", width=512, height=512, format=form)
    sink = MemorySink()
    publish_pyramid(latents_for(spec), ToyModel(), plan_of(spec), SingleRankGroup(), sink, device=CPU)
    ending = {"png": "png", "webp": "webp", "jpeg": "jpg"}[form]
    assert b"trainedAlgorithmicMedia" in sink.files[f"image_files/9/0_0.{ending}"]
    assert b"trainedAlgorithmicMedia" in sink.files["preview.webp"]
    assert b"tile_size" in sink.files["preview.webp"] and b"a red vase" not in sink.files["preview.webp"]
    assert f'Format="{ending}"'.encode() in sink.files["image.dzi"]


def read_manifest(image: Path) -> Manifest:
    return parse_manifest((image / "manifest.json").read_bytes(), str(image))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    spec = Spec(prompt="x", width=264, height=200, steps=2, tile_size=64)
    render_image(spec, ToyModel(), SingleRankGroup(), LocalStore(tmp_path / "image"), device=CPU)
    return tmp_path / "image"


def test_verify_finds_altered_missing_and_extra_files(image: Path) -> None:
    assert verify_image(LocalStore(image), read_manifest(image)).passes
    tile = image / "image_files/9/1_1.png"
    data = bytearray(tile.read_bytes())
    data[100] ^= 1
    tile.write_bytes(bytes(data))
    (image / "image_files/9/0_0.png").unlink()
    (image / "image_files/9/99_99.png").write_bytes(b"x")
    report = verify_image(LocalStore(image), read_manifest(image))
    assert not report.passes
    assert report.altered == ("image_files/9/1_1.png",)
    assert report.missing == ("image_files/9/0_0.png",)
    assert report.extra == ("image_files/9/99_99.png",)


def test_prompts_are_published_only_if_wanted(image: Path, tmp_path: Path) -> None:
    manifest = read_manifest(image)
    words = str(manifest.spec["prompt"])
    values = manifest.spec | {
        "source_type": "composite",
        "boxes": [{"prompt": "secret", "x": 0}],
        "init": {"path": "/home/someone/vase.png", "digest": "0f"},
    }
    for publish, seen in ((False, False), (True, True)):
        target = tmp_path / f"{publish}.webp"
        changed = manifest.model_copy(update={"spec": values})
        export_image(image, changed, target, publish_prompt=publish)
        packet = pyvips.Image.new_from_file(str(target)).get("xmp-data").decode()
        assert ((f'"prompt": "{words}"' in unescape(packet)) is seen) and (("secret" in packet) is seen)
        assert "compositeWithTrainedAlgorithmicMedia" in packet
        assert "steps" in packet and "someone" not in packet
        assert ("prompt" in read_parameters(target)) is seen


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
def test_an_export_is_the_full_level(image: Path, tmp_path: Path, ending: str) -> None:
    target = export_image(image, read_manifest(image), tmp_path / f"whole.{ending}")
    files = {path.relative_to(image).as_posix(): path.read_bytes() for path in image.rglob("*.png")}
    expected = level_of(files, 9, 264, 200, 64)
    with Image.open(target) as exported:
        assert exported.size == (264, 200)
        if ending in ("png", "tif"):
            assert np.array_equal(np.array(exported), expected)
    assert b"trainedAlgorithmicMedia" in pyvips.Image.new_from_file(str(target)).get("xmp-data")
    with pytest.raises(BadInput, match="--force"):
        export_image(image, read_manifest(image), target)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".part")] == []


@pytest.mark.parametrize("ending", ["webp", "jpg"])
def test_an_export_above_the_formats_limit_is_refused_before_any_work(
    image: Path, tmp_path: Path, ending: str
) -> None:
    manifest = image / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"width": 70_000}))
    with pytest.raises(BadInput, match="cannot hold 70000 px"):
        export_image(image, read_manifest(image), tmp_path / f"whole.{ending}")


@pytest.mark.parametrize("name", ["whole.gif", "nowhere/whole.png"])
def test_an_impossible_target_is_refused(image: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="target"):
        export_image(image, read_manifest(image), tmp_path / name)


def test_a_flat_image_is_not_published() -> None:
    class Flat(ToyModel):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return super().decode(latents) * 0

    sink = MemorySink()
    with pytest.raises(RenderFailed, match="flat"):
        render_image(
            Spec(prompt="x", width=128, height=128, steps=1), Flat(), SingleRankGroup(), sink, device=CPU
        )
    assert "manifest.json" not in sink.files


def test_a_failing_sink_fails_the_render() -> None:
    class Full(MemorySink):
        def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
            if "/9/" in key:
                raise OSError(28, "No space left on device")
            super().put(key, data, content_type)

    sink = Full()
    with pytest.raises(OSError, match="No space"):
        render_image(
            Spec(prompt="x", width=512, height=512, steps=1), ToyModel(), SingleRankGroup(), sink, device=CPU
        )
    assert "manifest.json" not in sink.files
