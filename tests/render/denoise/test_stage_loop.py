"""The step loop: one rank is the oracle, and groups may change between two steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from render.canvas import Canvas
from render.denoise.stage_loop import StageLoop
from render.denoise.upscaling import first_canvas
from render.distributed import AllGatherHandle, Group, SingleRankGroup
from render.engine import render_latents
from render.errors import RenderFailed
from render.events import Event, StageStarted
from render.plan.plan import StagePlan
from render.plan.stages import make_stages
from render.spec import BLENDS, SAMPLERS, Spec
from render.spec.init_image import InitImage, open_image
from render.spec.region_prompt import RegionPrompt
from tests.support.groups import ThreadGroup, run_ranks, thread_groups
from tests.support.models import ToyModel

CPU = torch.device("cpu")


def spec_of(**changes: object) -> Spec:
    values = {"prompt": "a red vase", "width": 448, "height": 320, "steps": 6, "strength": 0.5, "seed": 3}
    return Spec(**(values | changes))  # type: ignore[arg-type]


def latents_of(spec: Spec, group: Group, **hooks: Any) -> torch.Tensor:
    return render_latents(spec, ToyModel(), group, device=CPU, **hooks).state.gather().latents


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("ranks", [2, 3, 5, 40])
def test_ranks_do_not_change_a_bit(blend: str, sampler: str, ranks: int) -> None:
    spec = spec_of(blend=blend, sampler=sampler)
    alone = latents_of(spec, SingleRankGroup())
    for together in run_ranks(ranks, lambda group: latents_of(spec, group)):
        assert torch.equal(alone, together)


def _noisy_image(path: Path, height: int, width: int) -> InitImage:
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return open_image(path)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("side", "widths"), [(80, [224, 448]), (320, [112, 224, 448])])
def test_ranks_do_not_change_a_bit_of_an_image_with_an_init_image(
    blend: str, sampler: str, side: int, widths: list[int], tmp_path: Path
) -> None:
    source = _noisy_image(tmp_path / "init.png", side, side * 7 // 5)
    spec = spec_of(blend=blend, sampler=sampler, init=source, skip_residual=0.7)
    stages = make_stages(spec, ToyModel().info)
    assert [(stage.width, stage.first_step) for stage in stages] == [(width, 3) for width in widths]
    alone = latents_of(spec, SingleRankGroup())
    for together in run_ranks(3, lambda group: latents_of(spec, group)):
        assert torch.equal(alone, together)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_do_not_change_a_bit_of_an_image_with_region_prompts(blend: str, ranks: int) -> None:
    left = RegionPrompt(prompt="a red vase", x=0.0, y=0.1, width=0.55, height=0.9)
    right = RegionPrompt(prompt="a blue bottle, tall", x=0.5, y=0.0, width=0.5, height=0.8, weight=0.7)
    spec = spec_of(blend=blend, boxes=(left, right))
    alone = latents_of(spec, SingleRankGroup())
    for together in run_ranks(ranks, lambda group: latents_of(spec, group)):
        assert torch.equal(alone, together)
    assert not torch.equal(alone, latents_of(replace(spec, boxes=()), SingleRankGroup()))


def test_a_region_prompt_for_the_whole_image_is_the_image_of_its_prompt() -> None:
    whole = RegionPrompt(prompt="a red vase", x=0.0, y=0.0, width=1.0, height=1.0)
    boxed = latents_of(spec_of(prompt="something else", boxes=(whole,)), SingleRankGroup())
    plain = latents_of(spec_of(prompt="a red vase"), SingleRankGroup())
    assert torch.equal(boxed, plain)


def test_variations_share_their_first_stage_and_differ_in_the_last() -> None:
    spec, first = spec_of(), spec_of(width=112, height=80)
    for variation in (1, 2):
        assert torch.equal(
            latents_of(first, SingleRankGroup()),
            latents_of(replace(first, variation=variation), SingleRankGroup()),
        )
    ends = [latents_of(replace(spec, variation=variation), SingleRankGroup()) for variation in (0, 1, 2)]
    assert torch.equal(ends[0], latents_of(spec, SingleRankGroup()))
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])


def test_a_skip_residual_keeps_a_stage_closer_to_the_one_below() -> None:
    ends = {}
    for strength in (0.0, 0.3, 1.0):
        spec = spec_of(skip_residual=strength, strength=1.0, steps=12)
        free = latents_of(replace(spec, strength=0.01), SingleRankGroup())
        ends[strength] = float((latents_of(spec, SingleRankGroup()) - free).abs().mean())
    assert ends[0.0] > ends[0.3] > ends[1.0]


class _Gone(Exception):
    """Raised on a rank that has left the group, in place of the end of its process."""


class _Exit:
    """The group of a rank that has left: its first use ends the rank."""

    rank, world_size, epoch = 0, 1, 1

    def all_gather(self, block: torch.Tensor) -> AllGatherHandle:
        raise _Gone

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        raise _Gone


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("sampler", ["dpmpp-2m", "euler-ancestral"])
@pytest.mark.parametrize(("before", "after"), [(3, 2), (4, 1)])
def test_ranks_can_leave_in_the_middle_of_an_image(blend: str, sampler: str, before: int, after: int) -> None:
    spec = spec_of(blend=blend, sampler=sampler)
    alone = latents_of(spec, SingleRankGroup())
    last = make_stages(spec, ToyModel().info)[-1]
    successors = thread_groups(after, epoch=1)

    def work(group: ThreadGroup) -> torch.Tensor | None:
        stages: list[int] = []

        def regroup(step: int, now: Group) -> Group:
            if now.epoch == 1 or stages[-1] != last.index or step == last.first_step:
                return now
            return successors[now.rank] if now.rank < after else _Exit()

        def on_event(event: Event) -> None:
            if isinstance(event, StageStarted):
                stages.append(event.stage)

        try:
            return latents_of(spec, group, regroup=regroup, on_event=on_event)
        except _Gone:
            return None

    results = [result for result in run_ranks(before, work) if result is not None]
    assert len(results) == after
    assert all(torch.equal(alone, result) for result in results)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_canvas_between_two_steps_is_all_that_a_new_group_needs(blend: str, sampler: str) -> None:
    spec = spec_of(blend=blend, sampler=sampler, width=320, height=320)
    stage = make_stages(spec, ToyModel().info)[-1]
    schedule = ToyModel().schedule(spec.sampler, spec.steps)

    def run(until: int, canvas: Canvas, group: Group) -> Canvas:
        loop = StageLoop(
            plan=StagePlan(spec=spec, info=ToyModel().info, stage=replace(stage, steps=until)),
            schedule=schedule,
            adapter=ToyModel(),
            texts=(0.1,),
            device=CPU,
        )
        return loop.run(canvas, group).gather()

    start = first_canvas(stage, schedule, spec.seed, 4, stage.grid.whole)
    alone = run(6, start, SingleRankGroup())
    half = run_ranks(2, lambda group: run(3, start, group))[0]
    assert half.step == 3
    for whole in run_ranks(3, lambda group: run(6, half, group)):
        assert torch.equal(alone.latents, whole.latents)


def test_every_model_call_has_one_shape_per_stage() -> None:
    model = ToyModel()
    render_latents(spec_of(), model, SingleRankGroup(), device=CPU)
    # One window of its own shape in both conditions, four native windows in twos, then many in fours.
    assert set(model.calls) == {(2, 4, 10, 14), (2, 4, 16, 16), (4, 4, 16, 16)}


def test_a_model_that_returns_nan_fails_the_render() -> None:
    class Broken(ToyModel):
        def predict(self, latents: torch.Tensor, *rest: object) -> torch.Tensor:  # type: ignore[override]
            return torch.full_like(latents, torch.nan)

    with pytest.raises(RenderFailed, match="not finite at step 0 of stage 0"):
        render_latents(spec_of(), Broken(), SingleRankGroup(), device=CPU)
