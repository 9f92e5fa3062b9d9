"""Boxes: their shares sum to one everywhere, and each prompt rules inside its own box."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from render.errors import BadInput
from render.plan.region_prompts import prompt_weights, region_area
from render.plan.stages import make_stages
from render.plan.topology import Topology
from render.spec import Spec
from render.spec.region_prompt import RegionPrompt
from tests.support.models import ToyModel

SHARES = st.floats(0, 1)


@st.composite
def boxes(draw: st.DrawFn) -> RegionPrompt:
    width, height = (draw(st.floats(0.1, 1)) for _ in range(2))
    return RegionPrompt(
        prompt="a vase",
        x=draw(st.floats(0, 1 - width)),
        y=draw(st.floats(0, 1 - height)),
        width=width,
        height=height,
        weight=draw(st.floats(0.1, 1)),
        feather=draw(st.floats(0, 0.5)),
    )


@given(st.lists(boxes(), max_size=4), st.integers(8, 60), st.integers(8, 60))
def test_shares_sum_to_one(asked: list[RegionPrompt], height: int, width: int) -> None:
    placed = [(box, region_area(box, height, width)) for box in asked]
    shares = prompt_weights(placed, Topology(height=height, width=width))
    np.testing.assert_allclose(shares.sum(axis=0), 1.0, atol=1e-5)
    assert shares.min() >= 0
    for share, (_, area) in zip(shares[1:], placed, strict=True):
        outside = np.ones((height, width), bool)
        outside[area.slices] = False
        assert not share[outside].any()


def test_a_box_rules_in_its_middle_and_at_the_canvas_edge() -> None:
    box = RegionPrompt(prompt="a vase", x=0.0, y=0.0, width=0.5, height=1.0)
    shares = prompt_weights([(box, region_area(box, 32, 64))], Topology(height=32, width=64))
    assert shares[1, 16, 0] == shares[1, 16, 16] == 1.0
    assert 0 < shares[1, 16, 31] < 0.1
    assert shares[0, 16, 40] == 1.0


def test_a_box_at_a_joined_edge_fades_unless_it_goes_all_the_way_around() -> None:
    canvas = Topology(height=32, width=64, wrap_x=True)
    half, round_ = (
        RegionPrompt(prompt="a vase", x=0.0, y=0.0, width=width, height=1.0, feather=0.2)
        for width in (0.5, 1.0)
    )
    shares = prompt_weights([(half, region_area(half, 32, 64))], canvas)
    assert 0 < shares[1, 16, 0] < 0.1 and shares[1, 0, 16] == 1.0
    assert (prompt_weights([(round_, region_area(round_, 32, 64))], canvas)[1] == 1.0).all()
    spec = Spec(prompt="a table", width=1024, height=1024, wrap="x", boxes=(half, round_))
    rings = [layer.grid.cols.wraps for layer in make_stages(spec, ToyModel().info)[-1].patches]
    assert rings == [False, True]


def test_small_boxes_wait_for_a_stage_that_can_show_them() -> None:
    box = RegionPrompt(prompt="a vase", x=0.4, y=0.4, width=0.1, height=0.1)
    stages = make_stages(Spec(prompt="a table", width=1024, height=1024, boxes=(box,)), ToyModel().info)
    assert [len(stage.patches) for stage in stages] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0,0,0.5: a vase", "is not x,y,width,height: prompt"),
        ("a vase", "is not x,y,width,height: prompt"),
        ("0,0,nan,1: a vase", "is not x,y,width,height: prompt"),
        ("0,0,0.5,1:", "boxes.prompt: '' is empty"),
        ("0,0,0,1: a vase", "boxes.width: 0.0 is out of range; use 0.05 to 1"),
        ("0.6,0,0.5,1: a vase", "boxes.width: 0.5 goes beyond the image; use at most 0.4"),
        ("0,0,2,1: a vase", "boxes.width: 2.0 is out of range; use 0.05 to 1"),
        ({"prompt": "a vase", "x": 0, "y": 0, "width": 1}, "boxes.height: missing; give one, e.g. 1.0"),
        ({"prompt": "a vase", "left": 0}, "'left' is unknown"),
        (7, "is not a region"),
    ],
)
def test_bad_boxes_are_refused(value: object, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Spec.from_mapping({"prompt": "a table", "boxes": [value]})
