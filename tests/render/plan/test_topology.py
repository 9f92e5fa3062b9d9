"""Canvases that wrap: windows cross the edge, and a rank's halo and borders lie on both sides of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from render.errors import BadInput
from render.plan.geometry import Axis, Grid, Layer, Rect
from render.plan.stages import make_stages
from render.plan.tiling import Tiling
from render.plan.topology import Topology
from render.spec import BLENDS, Spec
from tests.support.models import ToyModel


@st.composite
def periodic_axes(draw: st.DrawFn, max_length: int = 140, min_window: int = 1) -> Axis:
    window = draw(st.integers(min_window, 20))
    length = draw(st.integers(window, max_length))
    overlap = draw(st.integers(0, window - 1))
    # A larger overlap never occurs, and its many windows would make the ranks' masks slow.
    overlap = min(overlap, window // 2)
    return Axis(length=length, window=window, overlap=overlap, moving=draw(st.booleans()), wraps=True)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    return Topology(
        height=draw(st.integers(1, 12)),
        width=draw(st.integers(1, 12)),
        wrap_y=draw(st.booleans()),
        wrap_x=draw(st.booleans()),
    )


@st.composite
def _rects(draw: st.DrawFn, canvas: Topology, turns: int = 2) -> Rect:
    """A rect on the canvas; along a periodic axis it may start anywhere."""
    sides = []
    for length, wraps in ((canvas.height, canvas.wrap_y), (canvas.width, canvas.wrap_x)):
        first = draw(st.integers(-2 * length, 2 * length) if wraps else st.integers(0, length - 1))
        count = draw(st.integers(1, turns * length if wraps else length - first))
        sides.append((first, count))
    return Rect(y=sides[0][0], x=sides[1][0], height=sides[0][1], width=sides[1][1])


def _marked(canvas: Topology, rect: Rect) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((canvas.height, canvas.width), bool)
    mask[np.ix_(canvas.ys(rect), canvas.xs(rect))] = True
    return mask


@given(topologies(), st.data())
def test_intersect_finds_the_overlap_of_two_rects(canvas: Topology, data: st.DataObject) -> None:
    span, area = data.draw(_rects(canvas)), data.draw(_rects(canvas, turns=1))
    number = np.arange(canvas.height * canvas.width).reshape(canvas.height, canvas.width)
    of_span, of_area = (number[np.ix_(canvas.ys(rect), canvas.xs(rect))] for rect in (span, area))
    met = np.zeros(of_span.shape, int)
    for there, here in canvas.intersect(span, area):
        assert np.array_equal(of_span[there], of_area[here])
        met[there] += 1
    assert np.array_equal(met, np.isin(of_span, of_area))


@given(topologies(), st.data())
def test_a_bounding_rect_is_the_smallest_on_each_axis(canvas: Topology, data: st.DataObject) -> None:
    rects = data.draw(st.lists(_rects(canvas), min_size=1, max_size=4))
    area = canvas.bounding_rect(rects)
    assert area.height <= canvas.height and area.width <= canvas.width
    inside = _marked(canvas, area)
    assert not any((_marked(canvas, rect) & ~inside).any() for rect in rects)
    for along in (0, 1):
        needed = np.any([_marked(canvas, rect).any(axis=1 - along) for rect in rects], axis=0)
        wraps = (canvas.wrap_y, canvas.wrap_x)[along]
        rolled = [np.roll(needed, -turn) for turn in range(len(needed) if wraps else 1)]
        shortest = min(np.flatnonzero(each)[-1] + 1 - np.flatnonzero(each)[0] for each in rolled)
        assert (area.height, area.width)[along] == shortest


@given(topologies(), st.data())
def test_inside_finds_the_latents_of_an_area(canvas: Topology, data: st.DataObject) -> None:
    area = data.draw(_rects(canvas, turns=1))
    places = np.arange(canvas.height * canvas.width)
    found, held = canvas.inside(places, area)
    number = places.reshape(canvas.height, canvas.width)[np.ix_(canvas.ys(area), canvas.xs(area))]
    assert sorted(held) == list(range(area.area))
    assert np.array_equal(number.ravel()[held], places[found])


@given(periodic_axes(), st.data())
def test_windows_cover_a_periodic_axis_and_their_weights_sum_to_one(axis: Axis, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, axis.offsets - 1))
    total = np.zeros(axis.length)
    for start, weights in zip(axis.starts(offset), axis.weights(offset), strict=True):
        assert weights.min() > 0
        np.add.at(total, np.arange(start, start + axis.window) % axis.length, weights)
        assert 0 <= axis.conditioning_start(start) <= axis.length - axis.window
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    assert axis.count * axis.window >= axis.length + (axis.overlap if axis.count > 1 else 0)


@given(periodic_axes())
def test_cells_partition_a_periodic_axis_within_the_reach_of_their_windows(axis: Axis) -> None:
    assert (
        axis.cell_bounds[-1] - axis.cell_bounds[0] == axis.length and len(axis.cell_bounds) == axis.count + 1
    )
    for (first, end), low, high in zip(axis.reach, axis.cell_bounds, axis.cell_bounds[1:], strict=False):
        assert low <= high
        assert low == high or (first <= low and high <= end)


def test_moving_windows_on_a_periodic_axis_start_at_every_latent() -> None:
    axis = Axis(length=120, window=16, overlap=1, moving=True, wraps=True)
    edges = {start % 120 for offset in range(axis.offsets) for start in axis.starts(offset)}
    assert edges == set(range(120))


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    moving = draw(st.booleans())
    axes = []
    wraps = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
    for periodic in wraps:
        window = draw(st.integers(2, 10))
        length = draw(st.integers(window, 40))
        overlap = draw(st.integers(0, window // 2)) if periodic or length > window else 0
        axes.append(Axis(length=length, window=window, overlap=overlap, moving=moving, wraps=periodic))
    grid = Grid(rows=axes[0], cols=axes[1])
    patches = tuple(draw(_patch(grid, moving)) for _ in range(draw(st.integers(0, 2))))
    ranks = draw(st.integers(1, 12))
    return Tiling(grid=grid, world_size=ranks, passes=draw(st.integers(1, 2)), patches=patches)


@st.composite
def _patch(draw: st.DrawFn, under: Grid, moving: bool) -> Layer:
    axes = []
    for axis in (under.rows, under.cols):
        window = draw(st.integers(2, min(10, axis.length)))
        region_length = draw(st.integers(window, axis.length))
        periodic = axis.wraps and region_length == axis.length
        overlap = draw(st.integers(0, window // 2)) if periodic or region_length > window else 0
        axes.append(Axis(length=region_length, window=window, overlap=overlap, moving=moving, wraps=periodic))
    y = draw(st.integers(0, under.height - axes[0].length))
    x = draw(st.integers(0, under.width - axes[1].length))
    return Layer(grid=Grid(rows=axes[0], cols=axes[1]), y=y, x=x, text=1)


@given(tilings(), st.data())
def test_a_border_on_a_periodic_canvas_is_exactly_what_a_neighbor_needs(
    tiling: Tiling, data: st.DataObject
) -> None:
    grid, canvas, ranks = tiling.grid, tiling.surface, range(tiling.world_size)
    offset = (
        data.draw(st.integers(0, grid.rows.offsets - 1)),
        data.draw(st.integers(0, grid.cols.offsets - 1)),
    )
    regions = np.concatenate([tiling.region(rank) for rank in ranks])
    assert np.array_equal(np.sort(regions), np.arange(grid.height * grid.width)), "regions partition it"
    halos = []
    for rank in ranks:
        halo = np.zeros((grid.height, grid.width), bool)
        box = tiling.boxes[rank]
        assert box.height <= grid.height and box.width <= grid.width, "no latent is stored twice"
        halo[np.ix_(canvas.ys(box), canvas.xs(box))] = tiling.halo_mask(rank)
        halos.append(halo)
    for rank in ranks:
        windows = [_marked(canvas, tiling.window(window, offset)) for window in tiling.windows_of(rank)]
        computed = np.any([np.zeros_like(halos[rank]), *windows], axis=0)
        assert not (computed & ~halos[rank]).any(), "a rank's halo contains all that its windows read"
        others = np.any([np.zeros_like(computed), *halos[:rank], *halos[rank + 1 :]], axis=0)
        assert np.array_equal(tiling.border(rank, offset), np.flatnonzero(computed & others))
        assert tiling.border_windows(rank, offset) == tuple((each & others).any() for each in windows)
        assert halos[rank].ravel()[tiling.region(rank)].all(), "a rank's halo contains its region"
        meeting = {other for other in ranks if other != rank and (halos[other] & halos[rank]).any()}
        assert meeting <= set(tiling.neighbours(rank))


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("wrap", ["x", "y", "xy"])
@pytest.mark.parametrize("size", [(128, 128), (448, 320), (1000, 616), (2048, 256), (72, 520)])
def test_every_stage_of_a_wrapped_spec_is_periodic(blend: str, wrap: str, size: tuple[int, int]) -> None:
    spec = Spec(prompt="a vase", width=size[0], height=size[1], wrap=wrap, blend=blend)
    for stage in make_stages(spec, ToyModel().info):
        for axis, name in ((stage.grid.rows, "y"), (stage.grid.cols, "x")):
            assert axis.wraps == (name in wrap)
            assert not axis.wraps or axis.count > 1, "an edge is always the middle of another window"


def test_a_length_too_short_to_wrap_is_refused() -> None:
    spec = Spec(prompt="a vase", width=56, height=512, wrap="x")
    with pytest.raises(BadInput, match=r"width: 56 .*use a multiple of 8 from 64 px on"):
        make_stages(spec, ToyModel().info)
    assert make_stages(spec.with_changes(wrap="y"), ToyModel().info)
    with pytest.raises(BadInput, match=r"wrap: .*use one of none, x, y, xy"):
        Spec(prompt="a vase", wrap="z")
