"""The engine executes the plan: it has no layout code, and its events match the plan's numbers."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import render
from render.distributed import Group
from render.engine import render_image
from render.events import Event, StepDone, TilesWritten
from render.plan import plan as plan_module
from render.plan.plan import make_plan
from render.spec import Spec
from render.spec.init_image import open_image
from render.spec.region_prompt import RegionPrompt
from tests.support.groups import run_ranks
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
LAYOUT = {
    "make_stages",
    "make_decode_layout",
    "make_tiling",
    "seam_lines",
    "Tiling",
    "DecodeLayout",
    "EnlargeLayout",
}
"""The plan's layout functions and types; the engine may name the types, and calls none of them."""
EXECUTORS = ("engine.py", "denoise", "output", "guidance", "launch")
BOX = RegionPrompt(prompt="a blue bottle", x=0.4, y=0.1, width=0.5, height=0.8)
ROW = ("a: ,x,,", "b: x,,,")
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one pass": {"guidance_scale": 1.0},
    "boxes": {"boxes": (BOX,)},
    "wrap": {"wrap": "xy"},
    "tile set": {"tile_set": ROW, "width": 512, "height": 128},
    "dilated": {"dilated": 0.7, "width": 320, "height": 320},
    "pooled": {"cross_attention": 1.0, "width": 320, "height": 320},
    "small batches": {"window_batch": 1},
}


def spec_of(**changes: Any) -> Spec:
    values = {"prompt": "a red vase", "width": 448, "height": 320, "steps": 3, "seed": 5, "tile_size": 64}
    return Spec.from_mapping(values | changes)


def rendered(spec: Spec, ranks: int) -> list[tuple[list[Event], int]]:
    """Per rank: the events of a render, and the number of its model's evaluations, padding included."""

    def work(group: Group) -> tuple[list[Event], int]:
        events: list[Event] = []
        model = ToyModel()
        render_image(spec, model, group, MemorySink(), device=CPU, on_event=events.append)
        return events, sum(shape[0] for shape in model.calls)

    return run_ranks(ranks, work)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("case", CASES)
def test_events_match_the_plan(case: str, ranks: int) -> None:
    spec = spec_of(**CASES[case])
    plan = make_plan(spec, ToyModel().info, ranks)
    for rank, (events, evaluations) in enumerate(rendered(spec, ranks)):
        padded = 0
        for stage in plan.stages:
            steps = [
                each for each in events if isinstance(each, StepDone) and each.stage == stage.stage.index
            ]
            assert len(steps) == stage.steps
            # Views are evaluated at the first of the stage's steps.
            views = [
                stage.view_calls[rank] if number < stage.view_steps else 0 for number in range(len(steps))
            ]
            calls = [stage.calls_per_step[rank] + extra for extra in views]
            assert [each.model_calls for each in steps] == calls
            assert steps[0].border_bytes == stage.message_bytes
            assert stage.message_bytes >= max(stage.border_bytes)
            padded += stage.calls_per_step[rank] * stage.steps * stage.stage.batch
            padded += stage.view_calls[rank] * stage.view_steps * stage.stage.view_batch
        assert evaluations == padded
        blocks = [each for each in events if isinstance(each, TilesWritten)]
        assert [each.pixels for each in blocks] == [
            block.width * block.height for block in plan.blocks_of(rank)
        ]
        if case == "small batches":
            own = [stage.evaluations_per_rank[rank] * stage.steps for stage in plan.stages]
            assert evaluations == sum(own), "no call is padded"


def test_stages_are_laid_out_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (80, 112, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "init.png")
    spec = spec_of(init=open_image(tmp_path / "init.png"))
    made: list[str] = []

    def counted(name: str) -> None:
        original = getattr(plan_module, name)

        def make(*arguments: Any) -> Any:
            made.append(name)
            return original(*arguments)

        monkeypatch.setattr(plan_module, name, make)

    for name in ("make_stages", "make_decode_layout", "seam_lines"):
        counted(name)
    rendered(spec, 1)
    assert sorted(made) == ["make_decode_layout", "make_stages", "seam_lines"]


def test_only_the_plan_lays_out() -> None:
    top = Path(render.__file__).parent
    for name in EXECUTORS:
        for path in [top / name] if name.endswith(".py") else (top / name).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    called = node.func
                    label = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                    assert label not in {*LAYOUT, "tiling"}, (
                        f"{path}:{node.lineno} lays out an image; use the plan"
                    )
