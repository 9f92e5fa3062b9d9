"""Images that wrap: no seam, no special position on the canvas, and any number of ranks."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from render.builtin import WEIGHTS
from render.canvas import Canvas, LatentRegion
from render.denoise.checkpoint import CheckpointManager
from render.denoise.stage_loop import StageLoop
from render.denoise.upscaling import enlarge, first_canvas, pixels_of_previous_stage
from render.distributed import Group, SingleRankGroup
from render.engine import render_image
from render.errors import Stopped
from render.events import Event, StepDone
from render.models import load_adapter
from render.models.folder import read_model_info
from render.output.decode import block_decoder
from render.output.pyramid import publish_pyramid
from render.output.pyramid_report import PyramidReport
from render.plan.geometry import Rect
from render.plan.plan import StagePlan, make_plan
from render.plan.stages import Stage, make_stages
from render.plan.tile_grid import even_grid
from render.plan.topology import Topology, topology_of
from render.spec import BLENDS, Spec
from render.spec.init_image import open_image
from render.spec.region_prompt import RegionPrompt
from tests.support.groups import run_ranks
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
Image8 = np.ndarray[Any, np.dtype[np.uint8]]


class PositionlessModel(ToyModel):
    """Ignores the position of a window."""

    def predict(self, latents: Tensor, *arguments: Any, **more: Any) -> Tensor:
        timestep, text, places, passes, guidance = arguments
        unmoved = [replace(place, pixel_y=0, pixel_x=0) for place in places]
        return super().predict(latents, timestep, text, unmoved, passes, guidance)


def spec_of(**changes: object) -> Spec:
    values = {"prompt": "a red vase", "width": 448, "height": 320, "steps": 6, "seed": 3, "tile_size": 64}
    return Spec(**values | {"wrap": "xy"} | changes)  # type: ignore[arg-type]


def root_of(spec: Spec, group: Group) -> str:
    return render_image(spec, ToyModel(), group, MemorySink(), device=CPU).root


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("wrap", ["x", "y", "xy"])
def test_ranks_do_not_change_a_bit(blend: str, wrap: str) -> None:
    spec = spec_of(blend=blend, wrap=wrap, sampler="euler-ancestral")
    alone = root_of(spec, SingleRankGroup())
    for ranks in (2, 3):
        assert set(run_ranks(ranks, lambda group: root_of(spec, group))) == {alone}
    assert alone != root_of(replace(spec, wrap="none"), SingleRankGroup())


@pytest.mark.parametrize("blend", BLENDS)
def test_ranks_do_not_change_a_bit_with_boxes_and_an_init_image(blend: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (160, 224, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "init.png")
    band = RegionPrompt(prompt="a table", x=0.0, y=0.5, width=1.0, height=0.5)
    vase = RegionPrompt(prompt="a blue vase", x=0.0, y=0.0, width=0.4, height=0.7)
    spec = spec_of(
        blend=blend,
        boxes=(band, vase),
        init=open_image(tmp_path / "init.png"),
        skip_residual=0.5,
        sampler="dpmpp-2m",
    )
    alone = root_of(spec, SingleRankGroup())
    for ranks in (2, 3):
        assert set(run_ranks(ranks, lambda group: root_of(spec, group))) == {alone}


@pytest.mark.parametrize("blend", BLENDS)
def test_a_stopped_render_resumes_with_other_ranks(blend: str) -> None:
    spec, sink = spec_of(blend=blend, sampler="dpmpp-2m"), MemorySink()

    def work(group: Group, last: int) -> str | None:
        steps: list[int] = []

        def on_event(event: Event) -> None:
            steps.extend([1] * isinstance(event, StepDone))

        checkpoints = CheckpointManager(
            sink, spec.digest("toy"), CPU, every_s=1e9, stop=lambda: len(steps) + 1 >= last
        )
        try:
            report = render_image(
                spec, ToyModel(), group, sink, device=CPU, checkpoints=checkpoints, on_event=on_event
            )
            return report.root
        except Stopped:
            return None

    for ranks, last in ((3, 4), (1, 3)):
        assert run_ranks(ranks, lambda group, last=last: work(group, last)) == [None] * ranks
    assert set(run_ranks(2, lambda group: work(group, 99))) == {root_of(spec, SingleRankGroup())}


def _denoised(spec: Spec, stage: Stage, start: Canvas) -> Tensor:
    model = PositionlessModel()
    loop = StageLoop(
        plan=StagePlan(spec=spec, info=model.info, stage=stage),
        schedule=model.schedule(spec.sampler, spec.steps),
        adapter=model,
        texts=(model.encode_prompt(spec.prompt, "", True),),
        device=CPU,
    )
    return loop.run(start, SingleRankGroup()).gather().latents


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m"])
def test_shifting_the_start_by_a_window_shifts_the_image(blend: str, sampler: str) -> None:
    # With these sizes windows are evenly spaced: every 12 latents, or every 15.
    size = {"overlap": (480, 384), "shift": (480, 360)}[blend]
    spec = spec_of(blend=blend, sampler=sampler, width=size[0], height=size[1])
    stage = replace(make_stages(spec, ToyModel().info)[-1], first_step=0)
    rows, cols = stage.grid.rows, stage.grid.cols
    assert rows.length % rows.count == cols.length % cols.count == 0 and min(rows.count, cols.count) > 2
    model = PositionlessModel()
    start = first_canvas(
        stage, model.schedule(sampler, spec.steps), spec.seed, 4, topology_of(stage.grid).whole
    )
    unmoved = _denoised(spec, stage, start)
    shift = (2 * rows.length // rows.count, cols.length // cols.count)
    moved = _denoised(spec, stage, replace(start, planes=start.planes.roll(shift, (-2, -1))))
    torch.testing.assert_close(moved, unmoved.roll(shift, (-2, -1)), rtol=0, atol=1e-4)
    other = _denoised(spec, stage, replace(start, planes=start.planes.roll((1, 1), (-2, -1))))
    assert (other.roll((-1, -1), (-2, -1)) - unmoved).abs().max() > 1e-3, (
        "only a shift by whole windows has no effect"
    )


@pytest.mark.parametrize("shift", [(0, 1), (13, 0), (29, 47)])
def test_decoding_is_periodic(shift: tuple[int, int]) -> None:
    canvas = Topology(height=40, width=56, wrap_y=True, wrap_x=True)
    latents = torch.randn((4, 40, 56), generator=torch.Generator().manual_seed(2))
    block, model = Rect(y=0, x=0, height=320, width=448), ToyModel()

    def decoded(planes: Tensor) -> Image8:
        return whole(LatentRegion(latents=planes, area=canvas.whole, canvas=canvas))

    def whole(piece: LatentRegion) -> Image8:
        grid = even_grid(piece.canvas, 16, 1)
        with block_decoder(model, piece, grid, SingleRankGroup(), CPU) as decode_block:
            return decode_block(block)

    moved = decoded(latents.roll(shift, (1, 2)))
    assert np.array_equal(moved, np.roll(decoded(latents), [8 * each for each in shift], axis=(0, 1)))
    sheet = LatentRegion(latents=latents, area=canvas.whole, canvas=replace(canvas, wrap_x=False))
    assert not np.array_equal(whole(sheet), decoded(latents))


@pytest.mark.parametrize("shift", [(0, 1), (7, 11)])
def test_enlarging_is_periodic(shift: tuple[int, int]) -> None:
    spec = spec_of()
    plan = make_plan(spec, ToyModel().info, 1).stages[-1]
    small, large = plan.enlarging.below, plan.enlarging.canvas
    assert small is not None
    latents = torch.randn((4, small.height, small.width), generator=torch.Generator().manual_seed(2))

    def enlarged(planes: Tensor) -> Tensor:
        piece = LatentRegion(latents=planes, area=small.whole, canvas=small)
        pixels = pixels_of_previous_stage(piece, plan, ToyModel(), SingleRankGroup(), CPU)
        return enlarge(pixels, plan, ToyModel(), SingleRankGroup(), CPU, large.whole).latents

    twice = [2 * each for each in shift]
    torch.testing.assert_close(enlarged(latents.roll(shift, (1, 2))), enlarged(latents).roll(twice, (1, 2)))


def test_an_init_image_is_scaled_across_its_edges(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 64, 3), np.uint8)
    whole = Rect(y=0, x=0, height=80, width=128)
    scaled = []
    for number, shift in enumerate([(0, 0), (10, 21)]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.roll(noise, shift, axis=(0, 1))).save(path)
        scaled.append(open_image(path).pixels(whole, 128, 80, wrap_x=True, wrap_y=True))
    assert np.abs(scaled[1].astype(int) - np.roll(scaled[0], (20, 42), axis=(0, 1))).max() <= 1


def test_the_edge_is_measured_where_an_image_wraps() -> None:
    spec = spec_of(wrap="x", steps=2)
    piece = LatentRegion(
        latents=torch.randn((4, 40, 56), generator=torch.Generator().manual_seed(2)),
        area=Rect(y=0, x=0, height=40, width=56),
        canvas=Topology(height=40, width=56, wrap_x=True),
    )

    def publish(group: Group) -> tuple[PyramidReport, dict[str, bytes]]:
        sink = MemorySink()
        plan = make_plan(spec, ToyModel().info, group.world_size)
        return publish_pyramid(piece, ToyModel(), plan, group, sink, device=CPU), sink.files

    report, files = publish(SingleRankGroup())
    image = _image(files, spec).astype(int)
    at = report.columns.lines.borders.index(0)
    measured = report.columns.of(report.columns.lines.borders)[0][at]
    assert measured == pytest.approx(np.abs(image[:, 0] - image[:, -1]).mean())
    assert 0 not in report.rows.lines.all
    assert all(
        np.array_equal(other[0].columns.absolute, report.columns.absolute) for other in run_ranks(3, publish)
    )


def _image(files: dict[str, bytes], spec: Spec) -> Image8:
    level, side = (max(spec.width, spec.height) - 1).bit_length(), spec.tile_size
    image = np.zeros((spec.height, spec.width, 3), np.uint8)
    for key, data in files.items():
        if key.startswith(f"image_files/{level}/"):
            col, row = map(int, Path(key).stem.split("_"))
            tile = np.asarray(Image.open(BytesIO(data)))
            image[row * side :, col * side :][: tile.shape[0], : tile.shape[1]] = tile
    return image


def _sharpness(image: Image8) -> np.ndarray[Any, np.dtype[np.float64]]:
    """For the lines between latents, with the image's edge first: the difference across each line over the
    differences beside it. An outline raises both, a seam only the first."""
    steps = np.abs(image - np.roll(image, 1, axis=1).astype(int)).mean(axis=(0, 2))
    beside = np.mean([np.roll(steps, away) for away in (-2, -1, 1, 2)], axis=0)
    return (steps / beside)[::8]


@pytest.mark.parametrize(("blend", "wrap"), [("overlap", "x"), ("shift", "x"), ("overlap", "none")])
def test_wrapped_edges_join(blend: str, wrap: str) -> None:
    spec = Spec(
        prompt="a red vase on a wooden table",
        width=320,
        height=160,
        seed=4,
        steps=8,
        wrap=wrap,
        blend=blend,
        tile_size=256,
    )
    torch.set_num_threads(1)
    adapter, sink = load_adapter(WEIGHTS, CPU, "float32", read_model_info(WEIGHTS)), MemorySink()
    assert len(make_stages(spec, adapter.info)) == 2
    render_image(spec, adapter, SingleRankGroup(), sink, device=CPU)
    edge, *controls = _sharpness(_image(sink.files, spec))
    if wrap == "x":
        # The edge must be no sharper than the sharpest other line between latents.
        assert edge <= 1.1 * np.max(controls)
    else:
        assert edge > 4 * np.mean(controls), "without wrap there is a seam"
