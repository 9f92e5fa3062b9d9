"""Global guidance: one rank is the oracle, and a resumed render continues to the same bits."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from render.distributed import AllGatherHandle, SingleRankGroup
from render.errors import BadInput
from render.events import Event, StepDone
from render.guidance.dilated_views import (
    blur,
    pack_region,
    pad_canvas,
    unpack_canvas,
    unpack_predictions,
)
from render.plan.communication import token_bytes, view_bytes
from render.plan.decay import decayed_strength
from render.plan.dilation import dilation_of, steps_with_views
from render.plan.geometry import Axis, Grid
from render.plan.plan import make_plan
from render.plan.stages import make_stages
from render.plan.tiling import Tiling
from render.plan.token_sources import (
    MAX_PER_SIDE,
    max_sources_per_rank,
    token_sources,
    token_sources_by_rank,
)
from render.spec import BLENDS, Spec
from render.spec.region_prompt import RegionPrompt
from tests.render.denoise.test_checkpoint import Ranks, root_of
from tests.render.denoise.test_stage_loop import latents_of, spec_of
from tests.support.groups import ThreadGroup, run_ranks
from tests.support.models import ToyModel

KINDS = {
    "dilated": {"dilated": 0.6},
    "pooled": {"cross_attention": 0.7},
    "both": {"dilated": 0.5, "cross_attention": 1.0, "skip_residual": 0.4, "sampler": "dpmpp-2m"},
}
BOX = RegionPrompt(prompt="a blue bottle, tall", x=0.3, y=0.0, width=0.7, height=0.8, weight=0.7)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxes", [(), (BOX,)])
def test_global_guidance_does_not_depend_on_the_number_of_ranks(
    blend: str, kind: str, boxes: tuple[RegionPrompt, ...]
) -> None:
    spec = spec_of(blend=blend, boxes=boxes, width=400, height=296, steps=5, **KINDS[kind])
    alone = latents_of(spec, SingleRankGroup())
    assert not torch.equal(
        alone, latents_of(replace(spec, dilated=0.0, cross_attention=0.0), SingleRankGroup())
    )
    for ranks in (2, 5):
        for together in run_ranks(ranks, lambda group: latents_of(spec, group)):
            assert torch.equal(alone, together)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop_after", [6, 7, 8])
def test_a_resumed_render_has_the_state_of_the_hooks(blend: str, kind: str, stop_after: int) -> None:
    spec = spec_of(blend=blend, width=320, height=320, steps=4, strength=0.75, tile_size=64, **KINDS[kind])
    assert len(make_stages(spec, ToyModel().info)) == 2
    image = Ranks(spec)
    assert image.render(3, stop_after=stop_after - 1) is None
    assert image.render(2) == root_of(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refiner_takes_over_from_a_model_with_global_guidance(kind: str) -> None:
    spec = spec_of(width=224, height=224, steps=8, strength=1.0, refiner="refiner", **KINDS[kind])
    alone = latents_of(spec, SingleRankGroup(), refiner=ToyModel())
    for together in run_ranks(2, lambda group: latents_of(spec, group, refiner=ToyModel())):
        assert torch.equal(alone, together)
    plain = replace(spec, dilated=0.0, cross_attention=0.0)
    assert not torch.equal(alone, latents_of(plain, SingleRankGroup(), refiner=ToyModel()))


def test_a_step_has_one_gather_and_the_plan_knows_its_size() -> None:
    spec = spec_of(**KINDS["both"])
    gathers: list[int] = []

    class Counted(ThreadGroup):
        def all_gather(self, block: torch.Tensor) -> AllGatherHandle:
            if self.rank == 0:
                gathers.append(block.numel() * block.element_size())
            return super().all_gather(block)

    counts: list[tuple[int, int]] = []

    def work(group: ThreadGroup) -> None:
        counted = Counted(group.rank, group.meeting)
        before = [0]

        def on_event(event: Event) -> None:
            # Before a stage's first step the stage below is enlarged, with gathers of its own.
            if isinstance(event, StepDone) and group.rank == 0 and before[0] >= 0:
                counts.append((len(gathers) - before[0], gathers[-1]))
            before[0] = len(gathers) if isinstance(event, StepDone) else -1

        latents_of(spec, counted, on_event=on_event)

    run_ranks(3, work)
    assert counts and {number for number, _ in counts} == {1}
    last = make_plan(spec, ToyModel().info, 3).stages[-1]
    full = max(size for _, size in counts)
    # The control flags, and the padding to whole columns.
    assert 0 <= full - max(last.border_bytes) <= 2 * 4 * last.channels


def test_the_plan_counts_views_and_tokens() -> None:
    spec, info = Spec(prompt="x", width=512, height=512), ToyModel().info
    plain = make_plan(spec, info, 2)
    dilated = make_plan(replace(spec, dilated=0.5), info, 2)
    pooled = make_plan(replace(spec, cross_attention=0.5), info, 2)
    last = dilated.stages[-1]
    assert last.stage.dilation is not None and last.stage.dilation.views == 16
    view_steps = len(list(steps_with_views(0.5, last.stage)))
    assert view_steps == sum(
        decayed_strength(0.5, last.stage, step) > 0 for step in range(last.stage.first_step, last.stage.steps)
    )
    assert last.view_calls == (-(-8 * last.stage.passes // last.stage.view_batch),) * 2
    assert dilated.work > plain.work and dilated.model_calls > plain.model_calls
    assert pooled.work == plain.work and pooled.model_calls == plain.model_calls
    grid = pooled.stages[-1].stage
    assert (
        token_bytes(pooled.spec, grid, pooled.stages[-1].tiling, info)
        == max_sources_per_rank(pooled.stages[-1].tiling) * 3 * 2
    )
    assert view_bytes(pooled.spec, grid, pooled.stages[-1].tiling, info) == 0
    for plan in (dilated, pooled):
        assert max(plan.stages[-1].border_bytes) > max(plain.stages[-1].border_bytes)
        assert max(plan.stages[-1].memory_bytes) > max(plain.stages[-1].memory_bytes)


TILINGS = st.builds(
    lambda rows, cols, world, passes: Tiling(
        grid=Grid(
            rows=Axis(length=rows, window=16, overlap=4, moving=False),
            cols=Axis(length=cols, window=16, overlap=4, moving=True),
        ),
        world_size=world,
        passes=passes,
    ),
    st.integers(16, 200),
    st.integers(16, 200),
    st.integers(1, 40),
    st.integers(1, 2),
)


@settings(max_examples=40, deadline=None)
@given(TILINGS)
def test_every_token_source_belongs_to_one_rank_and_their_number_is_bounded(tiling: Tiling) -> None:
    (sources,) = token_sources(tiling)
    assert sorted(source for own in token_sources_by_rank(tiling) for source in own) == sorted(sources)
    assert len(sources) <= MAX_PER_SIDE**2 * tiling.passes
    assert bool(sources) == (tiling.grid.windows > 1)
    if tiling.grid.windows <= MAX_PER_SIDE:
        assert len(sources) in (0, tiling.evaluations)


@settings(max_examples=40, deadline=None)
@given(TILINGS)
def test_views_cover_the_canvas_and_messages_are_put_together_again(tiling: Tiling) -> None:
    dilation = dilation_of(tiling.grid, 16)
    if dilation is None:
        return
    height, width, world = tiling.grid.height, tiling.grid.width, tiling.world_size
    assert dilation.every * dilation.height >= height and dilation.every * dilation.width >= width
    canvas = torch.arange(height * width, dtype=torch.float32).remainder(2048).view(1, height, width)
    messages = torch.stack(
        [
            pack_region(canvas[:, box.slices[0], box.slices[1]], tiling, rank)
            for rank, box in enumerate(tiling.boxes)
        ]
    )
    assert torch.equal(unpack_canvas(messages, tiling).float(), canvas)
    padded = pad_canvas(canvas, dilation)
    predictions = []
    for rank in range(world):
        own = torch.zeros((dilation.max_views_per_rank(world), 1, dilation.height, dilation.width))
        for number, view in enumerate(dilation.views_of(rank, world)):
            y, x = dilation.corner(view)
            own[number] = padded[:, y :: dilation.every, x :: dilation.every]
        predictions.append(own.half())
    for box in tiling.boxes:
        received = unpack_predictions(torch.stack(predictions), dilation, tiling, box)
        assert torch.equal(received, canvas[:, box.slices[0], box.slices[1]])


def test_the_blur_keeps_mean_and_deviation() -> None:
    stage = make_stages(spec_of(dilated=1.0), ToyModel().info)[-1]
    canvas = torch.randn((4, 40, 56), generator=torch.Generator().manual_seed(0)) + 0.5
    soft = blur(canvas, 3, stage, stage.first_step)
    assert abs(float(soft.mean() - canvas.mean())) < 1e-4
    assert abs(float(soft.std() - canvas.std())) < 1e-4
    assert float(soft.diff(dim=2).abs().mean()) < 0.7 * float(canvas.diff(dim=2).abs().mean())
    sharp = blur(canvas, 3, stage, stage.steps - 1)
    assert float((sharp - canvas).abs().mean()) < float((soft - canvas).abs().mean())


def test_a_model_without_tokens_is_refused_before_anything_runs() -> None:
    info = replace(ToyModel().info, token_width=0)
    with pytest.raises(BadInput, match="cross_attention"):
        make_stages(spec_of(cross_attention=0.5), info)
    make_stages(spec_of(dilated=0.5), info)


@pytest.mark.parametrize("field", ["dilated", "cross_attention"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_strengths_outside_0_to_1_are_refused(field: str, value: float) -> None:
    with pytest.raises(BadInput, match=field):
        Spec(prompt="x", **{field: value})


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(("channels", "native", "width"), [(16, 128, 144), (4, 1024, 1280)])
def test_tokens_are_at_most_a_twentieth_of_a_message(
    blend: str, channels: int, native: int, width: int
) -> None:
    info = replace(ToyModel(native, channels).info, token_width=width)
    spec = Spec(prompt="x", width=4096, height=4096, blend=blend, cross_attention=1.0)
    for ranks in (4, 8):
        last = make_plan(spec, info, ranks).stages[-1]
        assert 0 < last.token_bytes <= 0.05 * max(last.border_bytes)


def test_dilated_views_of_an_image_that_wraps_are_refused() -> None:
    with pytest.raises(BadInput, match="dilated"):
        Spec(prompt="x", width=512, height=512, dilated=0.5, wrap="x")
    Spec(prompt="x", width=512, height=512, cross_attention=0.5, wrap="x")
