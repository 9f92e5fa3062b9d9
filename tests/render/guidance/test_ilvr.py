"""ILVR: a stage keeps the coarse image of the stage below, and only where that one shows something."""

import math

import pytest
import torch

from render.distributed import SingleRankGroup
from render.engine import render_image, render_latents
from render.guidance.ilvr import LOW_PASS_SIGMA, apply_ilvr
from render.plan.stages import make_stages
from render.sampling.process import NoiseLevel
from render.sampling.samplers import to_denoised
from render.spec import Spec
from render.spec.init_image import InitImage
from render.spec.region_prompt import RegionPrompt
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")


def wave(length: int, period: float) -> torch.Tensor:
    return torch.sin(torch.arange(length) * (2 * math.pi / period)).expand(1, 2, length, length).contiguous()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sigma", [0.05, 0.8, 5.0])
def test_low_frequencies_are_replaced_by_those_of_the_reference_and_high_ones_stay(
    kind: str, sigma: float
) -> None:
    x, prediction = torch.randn(1, 2, 64, 64), torch.randn(1, 2, 64, 64)
    slow, fast = wave(64, 32.0), wave(64, 2.5)
    level = NoiseLevel(sigma)
    before = to_denoised(prediction, x, level, kind)
    for added, period in ((slow, 32.0), (fast, 2.5)):
        adjusted = apply_ilvr(prediction, x, before + added, level, kind, 1.0)
        change = (to_denoised(adjusted, x, level, kind) - before)[..., 8:-8, 8:-8]
        gain = float((change * added[..., 8:-8, 8:-8]).sum() / added[..., 8:-8, 8:-8].square().sum())
        # The gain of a Gaussian for a wave of this period.
        assert gain == pytest.approx(math.exp(-2 * (math.pi * LOW_PASS_SIGMA / period) ** 2), abs=0.02)
    half = apply_ilvr(prediction, x, before + slow, level, kind, 0.5)
    whole = apply_ilvr(prediction, x, before + slow, level, kind, 1.0)
    torch.testing.assert_close(half - prediction, (whole - prediction) / 2, rtol=1e-3, atol=1e-3)


def spec_of(**changes: object) -> Spec:
    values = {
        "prompt": "a red vase",
        "width": 256,
        "height": 256,
        "steps": 6,
        "strength": 0.5,
        "tile_size": 64,
    }
    return Spec(**values | changes)  # type: ignore[arg-type]


def test_a_stage_stays_close_to_the_image_that_it_enlarges() -> None:
    kept, free = (
        render_latents(spec_of(ilvr=strength), ToyModel(), SingleRankGroup(), device=CPU).state
        for strength in (1.0, 0.0)
    )
    reference = kept.reference
    assert reference is not None and free.reference is None

    def distance(latents: torch.Tensor) -> float:
        return float(torch.nn.functional.avg_pool2d(latents - reference.latents, 8).abs().mean())

    assert distance(kept.sampler_state.x) < distance(free.sampler_state.x) / 4


def test_a_region_prompt_that_first_appears_in_a_stage_is_not_kept_close_to_the_stage_below() -> None:
    small = RegionPrompt(prompt="a small blue ball", x=0.4, y=0.4, width=0.12, height=0.12)
    spec = spec_of(width=512, height=512, boxes=(small,))
    stages = make_stages(spec, ToyModel().info)
    assert [stage.composes for stage in stages] == [frozenset(), frozenset({1}), frozenset()]
    assert [stage.enlarges for stage in stages] == [False, True, True]
    roots = {
        render_image(
            spec.with_changes(ilvr=strength), ToyModel(), SingleRankGroup(), MemorySink(), device=CPU
        ).root
        for strength in (0.0, 0.5, 1.0)
    }
    assert len(roots) == 3


@pytest.mark.parametrize(("side", "enlarges"), [(256, False), (128, True)])
def test_an_init_image_is_kept_where_it_is_enlarged(side: int, enlarges: bool) -> None:
    init = InitImage(path="x.png", digest="0" * 64, width=side, height=side)
    stages = make_stages(spec_of(init=init), ToyModel().info)
    assert stages[0].enlarges is enlarges
