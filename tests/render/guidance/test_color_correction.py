"""Color correction: a stage keeps the coarse colors of the image that it enlarges."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from render.canvas import LatentRegion
from render.distributed import SingleRankGroup
from render.engine import render_latents
from render.guidance.color_correction import color_means, color_plane, decode_region
from render.plan.geometry import Rect
from render.plan.topology import Topology
from render.spec.region_prompt import RegionPrompt
from render.spec.tile_set import SetTile
from tests.render.guidance.test_ilvr import spec_of
from tests.support.models import ToyModel

CPU = torch.device("cpu")
SIDE = 24
WHOLE = Rect(y=0, x=0, height=SIDE, width=SIDE)


def region(colors: Tensor | None) -> LatentRegion:
    torch.manual_seed(2)
    latents = torch.randn(4, SIDE, SIDE)
    return LatentRegion(latents=latents, area=WHOLE, canvas=Topology(height=SIDE, width=SIDE), colors=colors)


def coarse(pixels: Tensor) -> Tensor:
    """Means over eight by eight latents."""
    return functional.avg_pool2d(pixels, 64)


def test_coarse_colors_are_corrected_and_fine_ones_stay() -> None:
    model = ToyModel()
    plain = decode_region(region(None), WHOLE, model, CPU)
    tint = torch.tensor([0.06, -0.04, 0.02])[:, None, None]
    wanted = color_means(plain, 8) + tint
    kept = region(color_plane(wanted, torch.ones(SIDE, SIDE), 4))
    corrected = decode_region(kept, WHOLE, model, CPU)
    torch.testing.assert_close(coarse(corrected), coarse(plain) + tint, rtol=0, atol=2e-3)
    torch.testing.assert_close(corrected - plain, tint.expand_as(corrected[0])[None], rtol=0, atol=2e-3)

    # A change within a few latents belongs to the stage: most of it stays.
    dots = torch.zeros(SIDE, SIDE)
    dots[::3, ::3] = 0.1
    finer = region(color_plane(color_means(plain, 8) + dots - dots.mean(), torch.ones(SIDE, SIDE), 4))
    assert float((decode_region(finer, WHOLE, model, CPU) - plain).abs().mean()) < 0.1 * float(dots.std())


def test_a_strength_of_0_changes_no_bit() -> None:
    away = region(color_plane(torch.zeros(3, SIDE, SIDE), torch.zeros(SIDE, SIDE), 4))
    assert torch.equal(
        decode_region(away, WHOLE, ToyModel(), CPU), decode_region(region(None), WHOLE, ToyModel(), CPU)
    )


def test_a_part_decoded_alone_is_corrected_like_the_whole() -> None:
    torch.manual_seed(4)
    kept = region(color_plane(torch.rand(3, SIDE, SIDE), torch.ones(SIDE, SIDE), 4))
    part = Rect(y=4, x=6, height=18, width=18)
    whole, alone = (decode_region(kept, area, ToyModel(), CPU) for area in (WHOLE, part))
    inner = slice(8 * 8, 10 * 8)
    there = whole[:, :, 4 * 8 : 22 * 8, 6 * 8 : 24 * 8]
    torch.testing.assert_close(alone[..., inner, inner], there[..., inner, inner], rtol=0, atol=1e-5)


def test_colors_do_not_drift_over_the_stages() -> None:
    """A decoder that changes all colors changes them again at every stage, unless they are corrected."""

    class Biased(ToyModel):
        def decode(self, latents: Tensor) -> Tensor:
            return super().decode(latents) * 0.9

    def drift(**changes: object) -> float:
        spec = spec_of(strength=0.2, **changes)
        means_of = []
        for side in (256, 1024):
            stage = render_latents(
                spec.with_changes(width=side, height=side), Biased(), SingleRankGroup(), device=CPU
            )
            finished = stage.gather(stage.state.tiling.grid.whole)
            means_of.append(decode_region(finished, finished.area, Biased(), CPU).mean((0, 2, 3)))
        return float((means_of[0] - means_of[1]).abs().max())

    assert drift() < 0.004 < drift(ilvr=0.0)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, 1.0),
        ({"ilvr": 0.4}, 0.4),
        ({"width": 256, "height": 256}, 0.0),
        ({"ilvr": 0.0, "skip_residual": 0.5}, 0.0),
        ({"tile_set": (SetTile(name="a", left="x", right="x"), SetTile(name="b", left="x", right="x"))}, 0.0),
    ],
)
def test_the_strength_is_that_of_ilvr(changes: dict[str, object], kept: float) -> None:
    spec = spec_of(**({"width": 512, "height": 512} | changes))
    state = render_latents(spec, ToyModel(), SingleRankGroup(), device=CPU).state
    assert state.reference is not None
    colors = state.reference.colors
    assert torch.equal(colors[3], torch.full(colors.shape[1:], kept))


def test_a_region_prompt_that_first_appears_in_a_stage_has_its_own_colors() -> None:
    box = RegionPrompt(prompt="a small blue ball", x=0.4, y=0.4, width=0.1, height=0.1)
    spec = spec_of(width=512, height=512, boxes=(box,))
    state = render_latents(spec, ToyModel(), SingleRankGroup(), device=CPU).state
    assert state.loop.stage.composes == {1} and state.reference is not None
    strength = state.reference.colors[3]
    assert float(strength[0, 0]) == 1.0 and float(strength.min()) < 0.05
