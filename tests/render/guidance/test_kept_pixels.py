"""Kept pixels: the file's own bytes in the result, on any number of ranks, and nothing else is frozen."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from render.denoise.checkpoint import CheckpointManager
from render.distributed import Group, SingleRankGroup
from render.engine import ImageReport, render_image
from render.errors import BadInput, RenderFailed, Stopped
from render.events import Event, StepDone
from render.guidance.kept_pixels import latent_weights, put_over, to_linear, to_srgb
from render.guidance.product_edge import RIM_LATENTS, rim_reach, without_fringe, without_rim
from render.output.kept_check import check_file, count_kept
from render.plan.stages import make_stages
from render.plan.topology import Topology
from render.rect import Rect
from render.spec import Spec
from tests.support.groups import run_ranks
from tests.support.models import ToyModel
from tests.support.products import save_product
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
HEIGHT, WIDTH = 192, 264


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return save_product(tmp_path_factory.mktemp("product"), HEIGHT, WIDTH)


def spec_of(files: tuple[Path, Path, Path], **changes: Any) -> Spec:
    values = {"prompt": "a red vase", "steps": 3, "seed": 3, "tile_size": 64}
    photo, mask, _ = map(str, files)
    return Spec.from_mapping(values | {"init": photo, "mask": mask} | changes)


def rendered(spec: Spec, group: Group, sink: MemorySink) -> ImageReport:
    return render_image(spec, ToyModel(64), group, sink, device=CPU)


def picture_of(sink: MemorySink, spec: Spec, ending: str = "png") -> np.ndarray:
    level = (max(spec.width, spec.height) - 1).bit_length()
    image, side = np.zeros((spec.height, spec.width, 3), np.uint8), spec.tile_size
    for key, data in sink.files.items():
        if key.startswith(f"image_files/{level}/") and key.endswith(ending):
            col, row = map(int, Path(key).stem.split("_"))
            tile = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            image[row * side : row * side + tile.shape[0], col * side : col * side + tile.shape[1]] = tile
    return image


@pytest.mark.parametrize("form", ["png", "webp"])
def test_kept_pixels_are_the_files_bytes(files: tuple[Path, Path, Path], form: str) -> None:
    spec, sink = spec_of(files, format=form), MemorySink()
    report = rendered(spec, SingleRankGroup(), sink)
    photo, alpha = (np.asarray(Image.open(files[index])) for index in (0, 1))
    found, full = picture_of(sink, spec, form), alpha == 0
    assert np.array_equal(found[full], photo[full])
    assert np.abs(found[alpha == 255].astype(int) - photo[alpha == 255]).mean() > 20
    kept = report.manifest.kept
    assert kept is not None and kept.own_scale and kept.pixels == full.sum()
    tile = sink.files[f"image_files/9/0_0.{form}"]
    assert b"compositeWithTrainedAlgorithmicMedia" in tile


WRAP = {"wrap": "xy", "boxes": ["0,0.5,1,0.5: a table"]}
HOOKS = {"sampler": "dpmpp-2m", "skip_residual": 0.5, "cross_attention": 0.5}
OUTPAINT = {"fit": "outpaint", "width": 256, "height": 256, "sampler": "euler-ancestral"}


@pytest.mark.parametrize(
    ("blend", "changes"),
    [
        pytest.param("shift", WRAP, id="shift-wrap"),
        pytest.param("overlap", OUTPAINT, id="overlap-outpaint"),
        pytest.param("overlap", OUTPAINT | {"mask": None}, id="overlap-photograph"),
        pytest.param("overlap", HOOKS, id="overlap-hooks", marks=pytest.mark.slow),
        pytest.param("overlap", WRAP, id="overlap-wrap", marks=pytest.mark.slow),
        pytest.param("shift", OUTPAINT, id="shift-outpaint", marks=pytest.mark.slow),
        pytest.param("shift", HOOKS, id="shift-hooks", marks=pytest.mark.slow),
    ],
)
def test_ranks_do_not_change_a_bit(
    files: tuple[Path, Path, Path], blend: str, changes: dict[str, Any]
) -> None:
    spec = spec_of(files, blend=blend, **changes)
    alone = rendered(spec, SingleRankGroup(), MemorySink())
    for ranks in (3, 2) if blend == "shift" else (3,):
        reports = run_ranks(ranks, lambda group: rendered(spec, group, MemorySink()))
        assert {report.root for report in reports} == {alone.root}
        assert all(report.manifest.kept == alone.manifest.kept for report in reports)


def test_a_stopped_render_resumes_with_other_ranks(files: tuple[Path, Path, Path]) -> None:
    spec, sink = spec_of(files), MemorySink()

    def work(group: Group, last: int) -> str | None:
        steps: list[int] = []

        def on_event(event: Event) -> None:
            steps.extend([1] * isinstance(event, StepDone))

        def stop() -> bool:
            return len(steps) + 1 >= last

        checkpoints = CheckpointManager(sink, spec.digest("toy"), CPU, every_s=1e9, stop=stop)
        try:
            return render_image(
                spec, ToyModel(64), group, sink, device=CPU, checkpoints=checkpoints, on_event=on_event
            ).root
        except Stopped:
            return None

    for ranks, last in ((3, 2), (1, 3)):
        assert run_ranks(ranks, lambda group, last=last: work(group, last)) == [None] * ranks
    alone = rendered(spec, SingleRankGroup(), MemorySink()).root
    assert set(run_ranks(2, lambda group: work(group, 99))) == {alone}


def test_the_first_size_is_painted_twice(files: tuple[Path, Path, Path]) -> None:
    spec = spec_of(files)
    stages = make_stages(spec, ToyModel(64).info)
    assert [stage.paints for stage in stages] == [True, True, *[False] * (len(stages) - 2)]
    assert stages[0].first_step == 0 < stages[1].first_step and not stages[1].enlarges
    assert (stages[0].width, stages[0].height) == (stages[1].width, stages[1].height)
    assert all(stage.enlarges for stage in stages[2:]) and stages[-1].width == WIDTH
    plain = make_stages(replace(spec, mask=None), ToyModel(64).info)
    assert not any(stage.paints for stage in plain)


def test_a_variation_keeps_the_composition(files: tuple[Path, Path, Path]) -> None:
    spec = spec_of(files, variation=4)
    assert spec.seed_of(0) == spec.seed != spec.seed_of(1)
    assert replace(spec, repaint=0.5).seed_of(0) != spec.seed


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_weights_and_pixels_depend_on_the_place_alone(
    files: tuple[Path, Path, Path], data: st.DataObject
) -> None:
    source = spec_of(files).kept
    assert source is not None
    wraps = data.draw(st.booleans())
    canvas = Topology(height=24, width=33, wrap_y=wraps, wrap_x=wraps)
    y, x = data.draw(st.integers(0, 23)), data.draw(st.integers(0, 32))
    height, width = data.draw(st.integers(1, 24 - y)), data.draw(st.integers(1, 33 - x))
    area, shrunk = Rect(y=y, x=x, height=height, width=width), data.draw(st.booleans())
    whole = latent_weights(source, canvas, 8, canvas.whole, shrunk=shrunk)
    assert torch.equal(latent_weights(source, canvas, 8, area, shrunk=shrunk), whole[area.slices])
    draw = torch.Generator().manual_seed(1)
    pixels = torch.rand((1, 3, HEIGHT, WIDTH), generator=draw)
    all_over = put_over(pixels, source, canvas, 8, canvas.whole)
    rows, cols = slice(8 * y, 8 * (y + height)), slice(8 * x, 8 * (x + width))
    assert torch.equal(put_over(pixels[..., rows, cols], source, canvas, 8, area), all_over[..., rows, cols])


def test_edges_are_mixed_in_linear_light(files: tuple[Path, Path, Path]) -> None:
    values = torch.linspace(0, 1, 5001)
    exact = torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    assert (to_linear(values) - exact).abs().max() < 1e-6
    assert (to_srgb(to_linear(values)) - values).abs().max() < 1e-4
    source = spec_of(files).kept
    assert source is not None
    canvas = Topology(height=HEIGHT // 8, width=WIDTH // 8)
    ground = torch.full((1, 3, HEIGHT, WIDTH), 0.5)
    found = put_over(ground, source, canvas, 8, canvas.whole)[0].permute(1, 2, 0).numpy()
    kept = source.kept(Rect(y=0, x=0, height=HEIGHT, width=WIDTH), WIDTH, HEIGHT)
    weight = kept[..., 3:].astype(float) / 255
    light = to_linear(torch.from_numpy(kept[..., :3].astype(np.float32) / 255)).numpy() * weight
    expected = to_srgb(torch.from_numpy(light + 0.21404 * (1 - weight)).float()).numpy()
    assert np.abs(found - expected).max() < 2e-3


def test_what_was_painted_beside_the_product_is_filled_from_farther_out() -> None:
    kept = torch.zeros((1, 1, 96, 96))
    kept[..., 40:56, 40:56] = 1
    painted = torch.full((1, 3, 96, 96), 0.7)
    painted[..., 36:60, 36:60] = 0.1  # a model that has painted more than is kept
    bare = without_fringe(painted, kept, 8)
    assert (bare[..., 32:64, 32:64] - 0.7).abs().max() < 1e-3
    far = torch.rand((1, 3, 96, 96))
    assert torch.equal(without_fringe(far, kept, 8)[..., :30], far[..., :30])


def test_a_rim_beside_a_product_is_taken_away_and_ground_that_goes_on_is_not() -> None:
    kept = torch.zeros((1, 1, 96, 96))
    kept[..., 40:56, 40:56] = 1
    colors = torch.full((1, 3, 96, 96), 0.1)
    decoded = torch.full((1, 3, 96, 96), 0.7)
    decoded[:, 0, 38:58, 38:58] = 0.4  # an edge that is reddish and two pixels off
    clean = without_rim(decoded, colors, kept, 4)
    assert (clean - 0.7).abs()[..., (kept == 0)[0, 0]].max() < 1e-3
    assert torch.equal(clean[..., :32], decoded[..., :32])
    ground = 0.7 + 0.05 * torch.rand((1, 3, 96, 96))
    assert torch.equal(without_rim(ground, ground, kept, 4), ground)


def test_a_rim_is_taken_away_in_parts_as_in_one_piece() -> None:
    torch.manual_seed(0)
    decoded, colors = torch.rand((2, 1, 3, 96, 96))
    kept = functional.interpolate((torch.rand((1, 1, 12, 12)) > 0.8).float(), scale_factor=8)
    whole = without_rim(decoded, colors, kept, rim_reach(8))
    margin = RIM_LATENTS * 8
    rows, columns = slice(24, 72 + margin), slice(0, 48 + margin)
    cut = [each[..., rows, columns] for each in (decoded, colors, kept)]
    part = without_rim(*cut, rim_reach(8))[..., margin:-margin, :-margin]
    torch.testing.assert_close(part, whole[..., 24 + margin : 72, :48])


def test_a_changed_pixel_is_never_published(files: tuple[Path, Path, Path]) -> None:
    spec = spec_of(files)
    source = spec.kept
    assert source is not None
    block = Rect(y=64, x=64, height=128, width=128)
    pixels = np.asarray(Image.open(files[0]))[block.slices].copy()
    full = np.asarray(Image.open(files[1]))[block.slices] == 0
    assert count_kept(source, block, pixels) == full.sum() > 1000
    y, x = np.argwhere(full)[7]
    pixels[y, x, 1] ^= 1
    with pytest.raises(RenderFailed, match=f"x {64 + x}, y {64 + y}\\) came out changed"):
        count_kept(source, block, pixels)
    lossy = io.BytesIO()
    Image.fromarray(pixels).save(lossy, "JPEG", quality=70)
    with pytest.raises(RenderFailed, match="was not encoded to the byte"):
        check_file(lossy.getvalue(), pixels)


def test_the_manifest_of_an_image_without_kept_pixels_says_none() -> None:
    spec = Spec(prompt="a red vase", width=128, height=128, steps=2)
    sink = MemorySink()
    assert rendered(spec, SingleRankGroup(), sink).manifest.kept is None
    assert json.loads(sink.files["manifest.json"])["kept"] is None


def test_a_shadow_darkens_the_ground_beside_the_product_and_nothing_else(
    files: tuple[Path, Path, Path],
) -> None:
    plain, shaded = spec_of(files, steps=1), spec_of(files, steps=1, shadow=0.6)
    pictures = []
    for spec in (plain, shaded):
        sink = MemorySink()
        rendered(spec, SingleRankGroup(), sink)
        pictures.append(picture_of(sink, spec).astype(int))
    keep = 255 - np.asarray(Image.open(files[1]).convert("L"))
    assert np.array_equal(pictures[0][keep == 255], pictures[1][keep == 255])
    darker = (pictures[0] - pictures[1]).max(axis=2)
    assert darker.min() >= 0 and darker.max() > 25
    rows = np.nonzero((darker > 5).any(axis=1))[0]
    foot = np.nonzero((keep == 255).any(axis=1))[0].max()
    # Around the line that the product stands on, and fading out above and below.
    assert rows.min() < foot < rows.max() < foot + 0.25 * WIDTH
    assert not darker[: HEIGHT // 3].any()


def test_a_shadow_is_the_same_on_any_number_of_ranks(files: tuple[Path, Path, Path]) -> None:
    spec = spec_of(files, shadow=0.5, steps=1)
    roots = set()
    for ranks in (1, 3):
        sink = MemorySink()

        def render(group: Group, sink: MemorySink = sink) -> str:
            return rendered(spec, group, sink).root

        roots |= set(run_ranks(ranks, render))
    assert len(roots) == 1


def test_a_shadow_needs_a_mask(files: tuple[Path, Path, Path]) -> None:
    with pytest.raises(BadInput, match="falls from what a mask keeps"):
        spec_of(files, mask="none", shadow=0.5)
    with pytest.raises(BadInput, match="needs an init image"):
        Spec.from_mapping({"prompt": "a vase", "shadow": 0.5})
