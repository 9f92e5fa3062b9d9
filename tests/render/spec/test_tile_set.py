"""Tile sets: every tile has neighbors that it may have, and sides with one label are equal."""

from __future__ import annotations

import itertools
import random
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from render.distributed import Group, SingleRankGroup
from render.engine import render_image, render_latents
from render.errors import BadInput
from render.launch.sinks import open_sink
from render.output.export import export_image, export_targets
from render.output.manifest import parse_manifest
from render.plan.plan import make_plan
from render.plan.stages import make_stages
from render.sampling.noise import stage_noise
from render.spec import BLENDS, Spec
from render.spec.tile_set import SetTile, solve_layout
from tests.support.groups import run_ranks
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
ROW = tuple(SetTile.from_any(text) for text in ("one: a,a", "two: a,b", "three: b,b", "four: b,a"))
"""All four tiles of two labels, left and right."""
FULL = tuple(
    SetTile(name=left + right + top + bottom, left=left, right=right, top=top, bottom=bottom)
    for left, right, top, bottom in itertools.product("ab", "ab", "xy", "xy")
)


def spec_of(tiles: tuple[SetTile, ...], size: tuple[int, int], **changes: object) -> Spec:
    values = {"prompt": "a red vase", "steps": 5, "seed": 3, "tile_size": 64, "tile_set": tiles}
    return Spec(**values | {"width": size[0], "height": size[1]} | changes)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_a_set_that_can_lie_together_is_laid_out(seed: int, rows: int, cols: int, labels: int) -> None:
    draw = random.Random(seed)
    down = [[draw.choice("xyz"[:labels]) for _ in range(cols)] for _ in range(rows)]
    across = [[draw.choice("abc"[:labels]) for _ in range(cols)] for _ in range(rows)]
    tiles = [
        SetTile(
            name=f"{row}-{col}",
            left=across[row][col - 1],
            right=across[row][col],
            top=down[row - 1][col],
            bottom=down[row][col],
        )
        for row in range(rows)
        for col in range(cols)
    ]
    draw.shuffle(tiles)
    layout = solve_layout(tuple(tiles), 512, 512)
    assert sorted(layout.parts(512, 512)) == sorted(tile.name for tile in tiles)
    for row, col in itertools.product(range(layout.rows), range(layout.cols)):
        assert layout.at(row, col).right == layout.at(row, col + 1).left
        assert layout.at(row, col).bottom == layout.at(row + 1, col).top


def test_the_search_for_a_layout_of_a_large_set_ends() -> None:
    """240 tiles in any order, of few labels: the search once took a board's thread for many seconds."""
    draw = random.Random(7)
    for labels in ("ab", "abcdefgh"):
        down = [[draw.choice(labels) for _ in range(16)] for _ in range(15)]
        across = [[draw.choice(labels) for _ in range(16)] for _ in range(15)]
        tiles = [
            SetTile(
                name=f"{row}-{col}",
                left=across[row][col - 1],
                right=across[row][col],
                top=down[row - 1][col],
                bottom=down[row][col],
            )
            for row, col in itertools.product(range(15), range(16))
        ]
        draw.shuffle(tiles)
        if labels == "ab":
            assert len(solve_layout(tuple(tiles), 2048, 1920).parts(2048, 1920)) == 240
        else:
            with pytest.raises(BadInput, match="add tiles, or label fewer sides"):
                solve_layout(tuple(tiles), 2048, 1920)


def test_tiles_keep_their_order_where_it_will_do_and_are_as_square_as_can_be() -> None:
    layout = solve_layout(ROW, 512, 128)
    assert (layout.rows, layout.cols, layout.wrap_x, layout.wrap_y) == (1, 4, True, False)
    assert [tile.name for tile in layout.tiles] == ["one", "two", "three", "four"]
    assert layout.parts(512, 128)["two"] == (128, 0, 128, 128)
    full = solve_layout(FULL, 1024, 1024)
    assert (full.rows, full.cols) == (4, 4)


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        (["a: x,y"], "'x' labels the left of a but no tile's right"),
        (["a: x,x", "a: x,x"], "is the name of two tiles"),
        (["a"], "is not name: left,right,top,bottom"),
        (["a: x,x,x,x,x"], "is not name: left,right,top,bottom"),
        (["a: ,"], "has no labeled side"),
        ([": x,x"], "tile_set.name: '' is not a name"),
        (["../a: x,x"], "tile_set.name: '../a' is not a plain word"),
        ([{"left": "x"}], "tile_set.name: missing; give one, e.g. lawn"),
        ([{"name": "a", "west": "x"}], "is unknown"),
        ([7], "is not a tile"),
        # Two right sides but one left side of it.
        (["a: x,y", "b: y,y", "c: y,x", "d: x,y"], "have no layout in which"),
    ],
)
def test_sets_that_contradict_themselves_are_refused(tiles: list[Any], words: str) -> None:
    values = {"prompt": "a vase", "tile_set": tiles, "width": 512, "height": 512}
    with pytest.raises(BadInput, match=words):
        assert Spec.from_mapping(values).tile_set_layout


def test_what_does_not_go_with_a_set_is_refused() -> None:
    with pytest.raises(BadInput, match="wrap: 'x' does not go with a tile set"):
        spec_of(ROW, (512, 128), wrap="x")
    with pytest.raises(BadInput, match="dilated"):
        spec_of(ROW, (512, 128), dilated=0.5)
    with pytest.raises(BadInput, match=r"width: 488 does not divide into 4 equal tiles .* use e.g. 512"):
        make_stages(spec_of(ROW, (488, 128)), ToyModel().info)
    assert make_stages(spec_of(ROW, (512, 128)), ToyModel().info)


@pytest.mark.parametrize(("tiles", "size"), [(ROW, (512, 128)), (FULL, (512, 512))])
def test_equal_latents_are_those_at_equal_sides(tiles: tuple[SetTile, ...], size: tuple[int, int]) -> None:
    spec = spec_of(tiles, size)
    for stage in make_stages(spec, ToyModel().info):
        ties, layout = stage.latent_classes, stage.tile_set_layout
        assert ties is not None and layout is not None
        noise = stage_noise(stage, 1, 0, 4, stage.tiling(1).surface.whole)
        parts = layout.parts(stage.grid.width, stage.grid.height)
        sides = {}
        for tile in layout.tiles:
            x, y, width, height = parts[tile.name]
            cell = noise[:, y : y + height, x : x + width]
            for side, strip in (("left", cell[:, 1:-1, :1]), ("right", cell[:, 1:-1, -1:])):
                sides.setdefault((side, getattr(tile, side)), []).append(strip)
        for strips in sides.values():
            assert len(strips) == len(tiles) // 2
            assert all(torch.equal(strips[0], strip) for strip in strips)
        assert not torch.equal(sides["left", "a"][0], sides["right", "a"][0])
        assert not torch.equal(sides["left", "a"][0], sides["left", "b"][0])
        assert (np.bincount(ties.classes) == ties.sizes).all() and (ties.sizes > 1).all()


def root_of(spec: Spec, group: Group) -> str:
    return render_image(spec, ToyModel(), group, MemorySink(), device=CPU).root


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("sampler", ["euler-ancestral", "dpmpp-2m"])
def test_ranks_do_not_change_a_bit(blend: str, sampler: str) -> None:
    spec = spec_of(ROW, (512, 128), blend=blend, sampler=sampler, skip_residual=0.5, cross_attention=0.5)
    alone = root_of(spec, SingleRankGroup())
    for ranks in (2, 3):
        assert set(run_ranks(ranks, lambda group: root_of(spec, group))) == {alone}
    assert alone != root_of(spec.with_changes(tile_set=(), wrap="x"), SingleRankGroup())


@pytest.mark.parametrize("blend", BLENDS)
def test_equal_latents_stay_equal_through_all_stages(blend: str) -> None:
    spec = spec_of(FULL, (512, 512), blend=blend)
    done = render_latents(spec, ToyModel(), SingleRankGroup(), device=CPU)
    stage = done.state.loop.stage
    assert stage.index == 2 and stage.latent_classes is not None
    latents = done.gather(stage.grid.whole).latents.flatten(1)
    ties = stage.latent_classes
    assert torch.equal(latents[:, ties.places], latents[:, ties.firsts[ties.classes]])


@pytest.mark.parametrize(("tiles", "size"), [(ROW, (512, 128)), (FULL, (512, 512))])
def test_any_allowed_neighbors_join(tiles: tuple[SetTile, ...], size: tuple[int, int]) -> None:
    """Where two tiles meet, the pixels are those rendered at sides with these labels."""
    spec = spec_of(tiles, size, tile_size=512)
    sink = MemorySink()
    render_image(spec, ToyModel(), SingleRankGroup(), sink, device=CPU)
    image = np.asarray(Image.open(BytesIO(sink.get("image_files/9/0_0.png"))))
    layout = solve_layout(tiles, *size)
    parts = {name: image[y : y + h, x : x + w] for name, (x, y, w, h) in layout.parts(*size).items()}
    seen = 0
    for one, two in itertools.product(tiles, tiles):
        for mine, theirs, turn in (("right", "left", 0), ("bottom", "top", 1)):
            label = getattr(one, mine)
            if not label or label != getattr(two, theirs):
                continue
            meeting = [tile for tile in layout.tiles if getattr(tile, mine) == label]
            there = next(divmod(layout.tiles.index(tile), layout.cols) for tile in meeting)
            rendered = (layout.at(*there), layout.at(there[0] + turn, there[1] + 1 - turn))
            sides = [parts[tile.name] for tile in (one, two, *rendered)]
            # The side across which they meet comes first.
            first, second, before, behind = (side if turn else np.swapaxes(side, 0, 1) for side in sides)
            # The toy decoder sees one latent beside its own; at the ends another side rules.
            assert np.array_equal(first[-8:, 16:-16], before[-8:, 16:-16])
            assert np.array_equal(second[:8, 16:-16], behind[:8, 16:-16])
            seen += 1
    assert seen == (8 if tiles is ROW else 256)


def test_an_export_writes_each_tile(tmp_path: Path) -> None:
    folder = tmp_path / "row"
    sink = open_sink(str(folder), patience_s=0)
    render_image(spec_of(ROW, (512, 128)), ToyModel(), SingleRankGroup(), sink, device=CPU)
    image = parse_manifest((folder / "manifest.json").read_bytes(), str(folder))
    targets = export_targets(image, tmp_path / "{tile}.png", False)
    assert sorted(path.name for path in targets) == ["four.png", "one.png", "three.png", "two.png"]
    for path, part in targets.items():
        export_image(folder, image, path, part=part)
    export_image(folder, image, tmp_path / "whole.png")
    whole = np.asarray(Image.open(tmp_path / "whole.png"))
    for number, name in enumerate(("one", "two", "three", "four")):
        tile = np.asarray(Image.open(tmp_path / f"{name}.png"))
        assert np.array_equal(tile, whole[:, number * 128 : (number + 1) * 128])
    with pytest.raises(BadInput, match="exists; use --force"):
        export_targets(image, tmp_path / "{tile}.png", False)
    with pytest.raises(BadInput, match="the image has no tile set"):
        export_targets(image.model_copy(update={"tile_set": {}}), tmp_path / "{tile}.png", True)


def test_the_plan_counts_what_ties_say() -> None:
    spec = spec_of(ROW, (512, 128))
    plain = make_plan(spec.with_changes(tile_set=(), wrap="x"), ToyModel().info, 2).stages[-1]
    tied = make_plan(spec, ToyModel().info, 2).stages[-1]
    assert tied.stage.latent_classes is not None
    assert max(tied.border_bytes) - max(plain.border_bytes) == len(tied.stage.latent_classes.firsts) * 4 * 8
