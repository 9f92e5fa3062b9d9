"""Windows cover the canvas, regions partition the work, a border is what a neighbour needs and no more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from render.plan.geometry import Axis, Grid, Layer
from render.plan.tiling import Tiling


@st.composite
def axes(draw: st.DrawFn, moving: bool) -> Axis:
    window = draw(st.integers(1, 24))
    length = draw(st.integers(window, 140))
    overlap = 0 if length == window else draw(st.integers(0, window - 1))
    return Axis(length=length, window=window, overlap=overlap, moving=moving)


@st.composite
def tilings(draw: st.DrawFn, most_ranks: int = 12) -> Tiling:
    moving = draw(st.booleans())
    # Small enough axes that a mask per rank stays cheap.
    grid = Grid(rows=draw(_small_axis(moving)), cols=draw(_small_axis(moving)))
    return Tiling(
        grid=grid,
        world_size=draw(st.integers(1, most_ranks)),
        passes=draw(st.integers(1, 2)),
        patches=tuple(draw(_patch(grid, moving)) for _ in range(draw(st.integers(0, 2)))),
    )


@st.composite
def _patch(draw: st.DrawFn, under: Grid, moving: bool) -> Layer:
    axes = []
    for length in (under.height, under.width):
        window = draw(st.integers(2, min(10, length)))
        side = draw(st.integers(window, length))
        overlap = 0 if side == window else draw(st.integers(0, window // 2))
        axes.append(Axis(length=side, window=window, overlap=overlap, moving=moving))
    y = draw(st.integers(0, under.height - axes[0].length))
    x = draw(st.integers(0, under.width - axes[1].length))
    return Layer(grid=Grid(rows=axes[0], cols=axes[1]), y=y, x=x, text=1)


@st.composite
def _small_axis(draw: st.DrawFn, moving: bool) -> Axis:
    window = draw(st.integers(2, 10))
    length = draw(st.integers(window, 48))
    overlap = 0 if length == window else draw(st.integers(0, max(0, window // 2)))
    return Axis(length=length, window=window, overlap=overlap, moving=moving)


@given(axes(moving=False) | axes(moving=True), st.data())
def test_windows_cover_the_axis_at_every_offset(axis: Axis, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, axis.offsets - 1))
    seen = np.zeros(axis.length, int)
    for start in axis.starts(offset):
        assert 0 <= start <= axis.length - axis.window
        seen[start : start + axis.window] += 1
    assert seen.min() >= 1


@given(axes(moving=False) | axes(moving=True), st.data())
def test_weights_sum_to_one(axis: Axis, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, axis.offsets - 1))
    total = np.zeros(axis.length)
    for start, weights in zip(axis.starts(offset), axis.weights(offset), strict=True):
        assert weights.min() > 0
        total[start : start + axis.window] += weights
    np.testing.assert_allclose(total, 1.0, atol=1e-5)


@given(axes(moving=False) | axes(moving=True))
def test_cells_partition_the_axis_inside_what_their_window_may_read(axis: Axis) -> None:
    assert axis.cell_bounds[0] == 0 and axis.cell_bounds[-1] == axis.length
    for (first, end), low, high in zip(axis.reach, axis.cell_bounds, axis.cell_bounds[1:], strict=False):
        assert low <= high
        assert low == high or (first <= low and high <= end)


def test_a_moving_grid_takes_every_latent_as_an_edge() -> None:
    axis = Axis(length=128, window=16, overlap=1, moving=True)
    edges = {start % 15 for offset in range(axis.offsets) for start in axis.starts(offset)[1:-1]}
    assert len(edges) == 15


@given(tilings(most_ranks=40))
def test_regions_partition_the_work(tiling: Tiling) -> None:
    dealt = [each for rank in range(tiling.world_size) for each in tiling.evaluations_of(rank)]
    assert sorted(dealt) == [
        ((number, row, col), turn)
        for number, layer in enumerate(tiling.layers)
        for row in range(layer.grid.rows.count)
        for col in range(layer.grid.cols.count)
        for turn in range(tiling.passes)
    ]
    loads = [len(tiling.evaluations_of(rank)) for rank in range(tiling.world_size)]
    assert max(loads) - min(loads) <= 1
    places = np.concatenate([tiling.region(rank) for rank in range(tiling.world_size)])
    assert np.array_equal(np.sort(places), np.arange(tiling.grid.height * tiling.grid.width))


def _on_canvas(tiling: Tiling, rank: int, mask: np.ndarray) -> np.ndarray:
    canvas = np.zeros((tiling.grid.height, tiling.grid.width), bool)
    box = tiling.boxes[rank]
    canvas[box.slices] = mask
    return canvas


@given(tilings(), st.data())
def test_a_border_is_what_a_neighbour_needs_and_no_more(tiling: Tiling, data: st.DataObject) -> None:
    grid = tiling.grid
    offset = (
        data.draw(st.integers(0, grid.rows.offsets - 1)),
        data.draw(st.integers(0, grid.cols.offsets - 1)),
    )
    ranks = range(tiling.world_size)
    holds = [_on_canvas(tiling, rank, tiling.halo_mask(rank)) for rank in ranks]
    for rank in ranks:
        computed = np.zeros((grid.height, grid.width), bool)
        for window in tiling.windows_of(rank):
            computed[tiling.window(window, offset).slices] = True
        assert not (computed & ~holds[rank]).any(), "a rank holds all that its windows read"
        others = np.zeros_like(computed)
        for other in ranks:
            if other != rank:
                others |= holds[other]
        assert np.array_equal(tiling.border(rank, offset), np.flatnonzero(computed & others))
        region = np.zeros(grid.height * grid.width, bool)
        region[tiling.region(rank)] = True
        assert not (region.reshape(computed.shape) & ~holds[rank]).any(), "a rank holds its region"


@given(tilings(), st.data())
def test_border_windows_are_those_that_others_need(tiling: Tiling, data: st.DataObject) -> None:
    grid = tiling.grid
    offset = (
        data.draw(st.integers(0, grid.rows.offsets - 1)),
        data.draw(st.integers(0, grid.cols.offsets - 1)),
    )
    for rank in range(tiling.world_size):
        border = set(tiling.border(rank, offset).tolist())
        for window, needed in zip(tiling.windows_of(rank), tiling.border_windows(rank, offset), strict=True):
            y, x = np.mgrid[tiling.window(window, offset).slices]
            assert needed == bool(border & set((y * grid.width + x).ravel().tolist()))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 64, 1000, 1024])
def test_any_world_size_is_balanced(world_size: int) -> None:
    axis = Axis(length=512, window=16, overlap=4, moving=False)
    tiling = Tiling(grid=Grid(rows=axis, cols=axis), world_size=world_size)
    loads = {len(tiling.windows_of(rank)) for rank in range(world_size)}
    assert max(loads) - min(loads) <= 1
    assert sum(len(tiling.windows_of(rank)) for rank in range(world_size)) == axis.count**2


def test_a_window_larger_than_its_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="16 does not fit an axis of 8"):
        Axis(length=8, window=16, overlap=0, moving=False)
