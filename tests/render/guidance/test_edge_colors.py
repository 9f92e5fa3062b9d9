"""What is painted around a photograph joins its colors: where, how far, and alike on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from render.canvas import cut_out
from render.distributed import Group, SingleRankGroup
from render.guidance.edge_colors import EdgeColors
from render.guidance.kept_pixels import latent_weights
from render.plan.plan import StagePlan, make_plan
from render.plan.topology import topology_of
from render.spec import Spec
from tests.support.groups import run_ranks
from tests.support.models import ToyModel

MODEL = ToyModel(64)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photograph") / "photo.png"
    Image.effect_noise((192, 256), 40).convert("RGB").save(path)
    return path


def spec_of(photograph: Path, **changes: Any) -> Spec:
    values = {"prompt": "a red vase", "steps": 3, "width": 448, "height": 256}
    return Spec.from_mapping(values | {"init": str(photograph), "fit": "outpaint"} | changes)


def drifted(spec: Spec) -> tuple[StagePlan, Tensor, Tensor, Tensor]:
    """The last stage, how much of each latent is kept, the source's latents, and a canvas that has them where
    it keeps them, and elsewhere less by 1.5 on the left to 0.5 on the right."""
    stage = make_plan(spec, MODEL.info, 1).stages[-1]
    source = spec.kept
    assert source is not None
    canvas = topology_of(stage.stage.grid)
    kept = latent_weights(source, canvas, MODEL.info.scale_factor, canvas.whole)
    shape = (MODEL.info.latent_channels, canvas.height, canvas.width)
    reference = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    off = torch.linspace(1.5, 0.5, canvas.width).expand(shape)
    return stage, kept, reference, reference - (1 - kept) * off


def hook_of(spec: Spec, plan: StagePlan, rank: int, reference: Tensor) -> EdgeColors:
    context: Any = SimpleNamespace(
        adapter=MODEL, area=plan.tiling.boxes[rank], tiling=plan.tiling, rank=rank, stage=plan.stage
    )
    source = spec.kept
    assert source is not None
    return EdgeColors(context, source, reference)


def adjusted(spec: Spec, group: Group) -> tuple[StagePlan, Tensor]:
    """The plan of the group, and the latents of this rank's region, flat."""
    stage, _, reference, x = drifted(spec)
    plan = stage.for_world_size(group.world_size)
    surface, area = plan.tiling.surface, plan.tiling.boxes[group.rank]
    own = [cut_out(planes, surface.whole, area, surface) for planes in (reference, x)]
    changed = hook_of(spec, plan, group.rank, own[0]).adjust_finished(own[1], group)
    places = surface.inside(plan.tiling.region(group.rank), area)[1]
    return plan, changed.flatten(1)[:, torch.from_numpy(places)]


def test_the_painted_side_meets_the_photograph_and_the_photograph_stays(photograph: Path) -> None:
    spec = spec_of(photograph)
    _, kept, reference, x = drifted(spec)
    changed = adjusted(spec, SingleRankGroup())[1].view_as(x)
    assert torch.equal(changed[:, kept == 1], x[:, kept == 1])
    off = (reference - changed).mean((0, 1))
    edge = int((kept[0] > 0).nonzero()[0])
    last = int((kept[0] > 0).nonzero()[-1])
    # Before: 1.2 to 1.3 on the left of the photograph, and 0.7 to 0.8 on its right.
    assert (reference - x).mean((0, 1))[edge - 1] > 1.2
    assert abs(off[edge - 1]) < 0.25 and abs(off[last + 1]) < 0.25
    assert off[0] > off[edge - 1] + 0.1, "less is added farther out"


def test_nothing_is_added_where_nothing_is_off(photograph: Path) -> None:
    spec = spec_of(photograph)
    stage, _, reference, _ = drifted(spec)
    hook = hook_of(spec, stage, 0, reference)
    assert torch.equal(hook.adjust_finished(reference, SingleRankGroup()), reference)


@pytest.mark.parametrize("wrap", ["none", "y"])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_rank_adds_the_same(photograph: Path, ranks: int, wrap: str) -> None:
    spec = spec_of(photograph, wrap=wrap)
    _, alone = adjusted(spec, SingleRankGroup())
    assert not torch.equal(alone, drifted(spec)[3].flatten(1))
    for rank, (plan, own) in enumerate(run_ranks(ranks, lambda group: adjusted(spec, group))):
        assert torch.equal(own, alone[:, torch.from_numpy(plan.tiling.region(rank))])


@pytest.mark.parametrize("changes", [{"fit": "crop"}, {"mask": "alpha"}])
def test_it_is_for_photographs_that_are_painted_on(photograph: Path, tmp_path: Path, changes: Any) -> None:
    if "mask" in changes:
        photograph = tmp_path / "cut.png"
        Image.new("RGBA", (192, 256), (200, 30, 30, 128)).save(photograph)
    spec = spec_of(photograph, **changes)
    assert not EdgeColors.needs_reference(spec, make_plan(spec, MODEL.info, 1).stages[-1].stage)


def test_the_surroundings_start_as_edges_drawn_out(photograph: Path) -> None:
    assert _first_steps(spec_of(photograph, steps=10))[:2] == [4, 4]
    assert _first_steps(spec_of(photograph, steps=10, repaint=0.3))[0] == 7


def _first_steps(spec: Spec) -> list[int]:
    return [each.stage.first_step for each in make_plan(spec, MODEL.info, 1).stages]
