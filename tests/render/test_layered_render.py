"""Whole renders with an autoencoder that has norms and attention: one root on any number of ranks."""

from __future__ import annotations

import pytest
import torch

from render.canvas import LatentRegion
from render.denoise.layered import decode_layered
from render.engine import render_image
from render.guidance.color_correction import color_plane, decode_region
from render.models import load_adapter
from render.models.adapter import Adapter
from render.models.autoencoders.tile_store import TileStore
from render.plan.tile_grid import even_grid
from render.plan.topology import Topology
from render.spec import Spec
from tests.render.models.tiny_folders import GENTLE_BETAS, save_sd
from tests.support.groups import ThreadGroup, run_ranks
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
SPEC = Spec(prompt="red", width=448, height=320, seed=3, steps=2, strength=0.5, tile_size=128, ilvr=0.5)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """One for each rank: ranks are processes, and an adapter is not made for several threads."""
    torch.set_num_threads(1)
    folder = save_sd(tmp_path_factory.mktemp("model") / "sd", "epsilon", GENTLE_BETAS)
    return [load_adapter(folder, CPU, "float32") for _ in range(4)]


@pytest.fixture
def adapter(adapters: list[Adapter]) -> Adapter:
    return adapters[0]


def root(spec: Spec, adapters: list[Adapter], ranks: int) -> str:
    def work(group: ThreadGroup) -> str:
        return render_image(spec, adapters[group.rank], group, MemorySink(), device=CPU).root

    (found,) = set(run_ranks(ranks, work))
    return found


@pytest.mark.parametrize(("wrap", "ranks"), [("none", (2, 3)), ("x", (4,))])
def test_one_root_on_any_number_of_ranks(adapters: list[Adapter], wrap: str, ranks: tuple[int, ...]) -> None:
    spec = SPEC.with_changes(wrap=wrap)
    first = root(spec, adapters, 1)
    assert all(root(spec, adapters, count) == first for count in ranks)


def test_tiles_have_the_colors_that_the_stage_keeps(adapter: Adapter) -> None:
    canvas = Topology(height=7, width=10)
    draw = torch.Generator().manual_seed(2)
    latents = torch.randn((4, canvas.height, canvas.width), generator=draw)
    wanted, strength = (torch.rand((count, 7, 10), generator=draw) for count in (3, 1))
    region = LatentRegion(
        latents=latents, area=canvas.whole, canvas=canvas, colors=color_plane(wanted, strength[0], 4)
    )
    whole = decode_region(region, canvas.whole, adapter, CPU)
    grid = even_grid(canvas, 4, 2)

    def work(group: ThreadGroup) -> torch.Tensor:
        with TileStore(CPU) as store:
            return decode_layered(adapter, region, grid, group, store).gather(canvas.whole)

    for found in run_ranks(2, work):
        assert (found - whole).abs().max() <= 1e-4
    plain = adapter.decode(latents[None])
    assert (plain - whole).abs().mean() > 0.01
