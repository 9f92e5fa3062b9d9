"""Layer by layer over tiles equals the undivided network, and any number of ranks gives the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from render.models.autoencoders import open_autoencoder
from render.models.autoencoders.tile_store import TileStore
from render.plan import attention_window
from render.plan.attention_window import WHOLE_CANVAS_TOKENS, attended_tiles, window_radius
from render.plan.tile_grid import TileGrid, cut_into_tiles, even_grid, tile_side
from render.plan.topology import Topology
from tests.render.models.autoencoders.test_autoencoders import geometry
from tests.render.models.autoencoders.tile_runs import run_over_tiles
from tests.render.models.autoencoders.tiny_networks import network

CPU = torch.device("cpu")
LAYERED = ["kl", "flux2", "qwen", "qwen21", "hunyuan", "dc", "dc-sana"]
LARGEST = 1e-4


def opened(kind: str) -> tuple[Any, Any]:
    vae = network(kind)
    return open_autoencoder(vae, CPU), geometry(kind, vae)


def inputs(shape: Any, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Latents, and pixels that are not flat anywhere."""
    draw = torch.Generator().manual_seed(height * 1000 + width)
    latents = torch.randn((1, shape.latent_channels, height, width), generator=draw)
    pixels = torch.rand((1, 3, height * shape.scale_factor, width * shape.scale_factor), generator=draw)
    return latents, pixels


@pytest.mark.parametrize("kind", LAYERED)
def test_tiles_equal_the_undivided_network(kind: str) -> None:
    autoencoder, shape = opened(kind)
    canvas, side = Topology(height=5, width=9), 4  # the last row and column of tiles are one latent wide
    latents, pixels = inputs(shape, canvas.height, canvas.width)
    for source, undivided in ((latents, autoencoder.decode), (pixels, autoencoder.encode)):
        found = run_over_tiles(autoencoder, source, canvas, side)
        assert (found - undivided(source)).abs().max() <= LARGEST
        # With four kilobytes in memory, so that most of it goes through files.
        assert torch.equal(run_over_tiles(autoencoder, source, canvas, side, ranks=3, budget=4096), found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pixels", [1024, 2048])
@pytest.mark.parametrize("kind", ["kl", "flux2", "qwen", "dc"])
def test_large_images_equal_the_undivided_network_on_any_number_of_ranks(kind: str, pixels: int) -> None:
    autoencoder, shape = opened(kind)
    length = pixels // shape.scale_factor
    canvas, side = Topology(height=length, width=length), tile_side(shape.scale_factor)
    for source, undivided in zip(
        inputs(shape, length, length), (autoencoder.decode, autoencoder.encode), strict=True
    ):
        found = run_over_tiles(autoencoder, source, canvas, side)
        assert (found - undivided(source)).abs().max() <= LARGEST
        for ranks in (2, 3, 4):
            assert torch.equal(run_over_tiles(autoencoder, source, canvas, side, ranks=ranks), found)


@pytest.mark.parametrize("kind", ["kl", "dc"])
def test_a_canvas_that_wraps_has_no_edge(kind: str) -> None:
    """Moved around the torus, the same image comes out, moved."""
    autoencoder, shape = opened(kind)
    canvas, side = Topology(height=6, width=4, wrap_y=True, wrap_x=True), 2
    latents, _ = inputs(shape, canvas.height, canvas.width)
    found = run_over_tiles(autoencoder, latents, canvas, side, ranks=2)
    moved = run_over_tiles(autoencoder, latents.roll((3, 1), (2, 3)), canvas, side)
    back = moved.roll((-3 * shape.scale_factor, -shape.scale_factor), (2, 3))
    assert (back - found).abs().max() <= LARGEST
    plane = run_over_tiles(autoencoder, latents, Topology(height=6, width=4), side)
    assert (plane - found).abs().max() > 10 * LARGEST


def test_beyond_a_size_attention_sees_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder, shape = opened("kl")
    canvas, side = Topology(height=4, width=12), 2
    latents, _ = inputs(shape, canvas.height, canvas.width)
    whole = run_over_tiles(autoencoder, latents, canvas, side)
    monkeypatch.setattr(attention_window, "WHOLE_CANVAS_TOKENS", 36)  # three by three tiles
    windowed = run_over_tiles(autoencoder, latents, canvas, side)
    assert torch.equal(run_over_tiles(autoencoder, latents, canvas, side, ranks=4), windowed)
    assert 0 < (windowed - whole).abs().max() < 0.1


def test_the_window_is_the_largest_that_fits() -> None:
    grid = even_grid(Topology(height=1024, width=1024), 32, 1)
    assert len(attended_tiles(even_grid(Topology(height=512, width=512), 32, 1), 0, 1)) == 256
    radius = window_radius(32)
    assert ((2 * radius + 1) * 32) ** 2 <= WHOLE_CANVAS_TOKENS < ((2 * radius + 3) * 32) ** 2
    middle = attended_tiles(grid, 16 * 32 + 16, 1)
    assert len(middle) == (2 * radius + 1) ** 2 and middle == sorted(middle)


def test_a_store_frees_what_it_kept() -> None:
    values = torch.arange(12, dtype=torch.bfloat16).view(3, 4)
    with TileStore(CPU, budget=values.nbytes) as store:
        inside, outside = store.keep(values), store.keep(values + 1)
        assert (store.used, store.spilled) == (values.nbytes, values.nbytes)
        assert torch.equal(inside.read(), values) and torch.equal(outside.read(), values + 1)
        inside.drop()
        outside.drop()
        assert store.used == 0


lengths = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(lengths, lengths, st.integers(1, 4), st.booleans(), st.booleans(), st.integers(1, 3), st.data())
def test_pieces_are_the_surroundings_of_a_tile(
    height: int, width: int, side: int, wrap_y: bool, wrap_x: bool, scale: int, data: st.DataObject
) -> None:
    """A patch put together of strips is the canvas read at these places, on every rank."""
    reach, world = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    canvas = Topology(height=height, width=width, wrap_y=wrap_y, wrap_x=wrap_x)
    count = len(cut_into_tiles(canvas, side))
    owners = tuple(data.draw(st.lists(st.integers(0, world - 1), min_size=count, max_size=count)))
    grid = TileGrid(canvas=canvas, side=side, owners=owners, world_size=world)
    whole = np.arange(height * width * scale**2).reshape(height * scale, width * scale)
    for index, tile in enumerate(grid.tiles):
        rows = np.arange(tile.y * scale - reach, (tile.y + tile.height) * scale + reach)
        cols = np.arange(tile.x * scale - reach, (tile.x + tile.width) * scale + reach)
        rows = rows % whole.shape[0] if wrap_y else rows[(rows >= 0) & (rows < whole.shape[0])]
        cols = cols % whole.shape[1] if wrap_x else cols[(cols >= 0) & (cols < whole.shape[1])]
        expected = whole[np.ix_(rows, cols)]
        top, left, bottom, right = grid.margins(index, scale, reach)
        assert expected.shape == (
            tile.height * scale + top + bottom,
            tile.width * scale + left + right,
        )
        patch = np.full(expected.shape, -1)
        for piece in grid.pieces(index, scale, reach):
            source = tile_values(whole, grid, index, scale)
            if piece.strip is not None:
                source = strip_values(whole, grid, piece.strip, scale, reach)
                owner = owners[piece.strip[0]]
                sent = grid.sent_strips(owner, scale, reach)
                assert owner == owners[index] or piece.strip in sent
            patch[piece.there] = source[piece.here]
        assert np.array_equal(patch, expected)


def tile_values(whole: Any, grid: TileGrid, index: int, scale: int) -> Any:
    tile = grid.tiles[index]
    rows = slice(tile.y * scale, (tile.y + tile.height) * scale)
    return whole[rows, tile.x * scale : (tile.x + tile.width) * scale]


def strip_values(whole: Any, grid: TileGrid, strip: Any, scale: int, reach: int) -> Any:
    values = tile_values(whole, grid, strip[0], scale)
    height, width = values.shape
    cut = {
        "top": values[:reach],
        "bottom": values[max(0, height - reach) :],
        "left": values[:, :reach],
        "right": values[:, max(0, width - reach) :],
    }[strip[1]]
    assert cut.shape == grid.strip_shape(strip, scale, reach)
    return cut
