"""Planning has a limit that is told before anything is planned, and reaches up to it in some seconds."""

import re
from dataclasses import replace

import pytest

from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.plan.plan import make_plan
from render.plan.stages import MAX_REGIONS, MAX_WINDOWS
from render.spec import Spec

INFO = model_info(find_model_paths("builtin", None))


@pytest.mark.parametrize("options", [{}, {"blend": "shift", "dilated": 0.5}, {"wrap": "xy"}])
@pytest.mark.parametrize("size", ["131072x131072", "40000x40000", "8192x131072"])
def test_an_image_that_takes_too_long_to_plan_is_refused_with_a_size_that_is_not(
    size: str, options: dict[str, object]
) -> None:
    values = {"prompt": "a red vase", "size": size, "tile_size": 2048} | options
    with pytest.raises(BadInput, match=r"^(width|height): \d+ makes an image .* above the limit") as caught:
        make_plan(Spec.from_mapping(values), INFO, 1)
    advice = re.search(r"use e\.g\. (\d+x\d+)", str(caught.value))
    assert advice is not None
    assert make_plan(Spec.from_mapping(values | {"size": advice[1]}), INFO, 1).work > 0


def test_a_model_of_a_larger_native_size_plans_larger_images() -> None:
    spec = Spec.from_mapping({"prompt": "x", "size": "65536x65536", "dilated": 0.5})
    plan = make_plan(spec, replace(INFO, native_size=1024), 64)
    assert plan.stages[-1].windows < MAX_WINDOWS
    # By cells, not by an array of all latents.
    assert plan.stages[-1].tiling.longest_region * 64 >= 8192 * 8192


def test_region_prompts_are_counted() -> None:
    region = "0,0,1,1: a vase"
    with pytest.raises(BadInput, match=f"^boxes: {MAX_REGIONS + 1} regions are too many; use at most"):
        make_plan(Spec.from_mapping({"prompt": "x", "boxes": [region] * (MAX_REGIONS + 1)}), INFO, 1)
    with pytest.raises(BadInput, match=r"^boxes: 100 regions make .* windows, above the limit"):
        make_plan(Spec.from_mapping({"prompt": "x", "size": "8192x8192", "boxes": [region] * 100}), INFO, 1)
