"""Calls that run as one have the bits of calls that run one by one, whatever else is in them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from render.denoise.model_calls import JoinedCalls
from render.distributed import SingleRankGroup
from render.engine import render_latents
from render.models import Adapter, WindowPlace, load_adapter, read_model_info, resolve_model
from render.models.joined_calls import CallJoiner
from render.models.model_call import Evaluation, ModelCall
from render.models.packed_call import pack
from render.rect import Rect
from render.spec import Spec
from tests.render.models import tiny_transformers

CPU = torch.device("cpu")
WINDOW = Rect(y=0, x=0, height=16, width=16)


@pytest.fixture(scope="module")
def builtin() -> Adapter:
    folder = resolve_model("builtin")
    return load_adapter(folder, CPU, "float32", read_model_info(folder))


def calls_of(adapter: Adapter, rows: int, count: int, scale: float = 4.0) -> list[ModelCall]:
    """Calls of different prompts, steps and latents."""
    side, pixels = adapter.info.native_size // adapter.info.scale_factor, adapter.info.native_size
    place = WindowPlace(
        image_height=pixels, image_width=pixels, pixel_y=0, pixel_x=0, height=pixels, width=pixels
    )
    passes = 1 if adapter.info.takes_guidance else 2
    texts = [adapter.encode_prompt(text, "", passes == 2) for text in ("a red vase", "a bowl")]
    draw = torch.Generator().manual_seed(7)
    return [
        ModelCall(
            latents=torch.randn((rows, adapter.info.latent_channels, side, side), generator=draw),
            timestep=900.0 - 130.0 * number,
            text=texts[number % 2],
            places=[place] * rows,
            conditions=[(number + row) % passes for row in range(rows)],
            guidance_scale=scale,
        )
        for number in range(count)
    ]


def assert_all_equal(adapter: Adapter, calls: list[ModelCall], joiner: CallJoiner, most: int) -> None:
    alone = [call.predict(adapter) for call in calls]
    for _ in range(2):
        for expected, found in zip(alone, joiner.run(adapter, calls, most), strict=True):
            assert isinstance(found, Tensor), found
            assert torch.equal(expected, found)


@pytest.mark.parametrize(("rows", "count", "most"), [(1, 7, 16), (2, 3, 8), (3, 2, 6)])
def test_joined_calls_of_the_builtin_model_have_the_bits_of_single_ones(
    builtin: Adapter, rows: int, count: int, most: int
) -> None:
    joiner, calls = CallJoiner(builtin), calls_of(builtin, rows, count)
    assert_all_equal(builtin, calls, joiner, most)


def test_calls_of_one_row_run_as_one(builtin: Adapter) -> None:
    joiner, calls, forwards = CallJoiner(builtin), calls_of(builtin, 1, 7), []
    joiner.run(builtin, calls, 16)
    handle = builtin.pipeline.unet.register_forward_hook(lambda *_: forwards.append(1))
    joiner.run(builtin, calls, 16)
    handle.remove()
    assert len(forwards) == 3, "4 + 2 + 1"


def test_no_call_has_more_rows_than_allowed(builtin: Adapter) -> None:
    joiner, calls, rows = CallJoiner(builtin), calls_of(builtin, 1, 5), set[int]()
    handle = builtin.pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows.add(len(inputs[0])))
    joiner.run(builtin, calls, 2)
    handle.remove()
    assert max(rows) == 2


def test_outside_of_joined_calls_the_network_is_as_it_was(builtin: Adapter) -> None:
    before = {name: dict(module.__dict__) for name, module in builtin.pipeline.unet.named_modules()}
    CallJoiner(builtin).run(builtin, calls_of(builtin, 1, 2), 2)
    after = {name: dict(module.__dict__) for name, module in builtin.pipeline.unet.named_modules()}
    assert before == after


def padded(call: ModelCall, used: int) -> ModelCall:
    """The call with copies in all rows but the first `used`, as the step loop fills it up."""
    rows = [min(row, used - 1) for row in range(len(call.latents))]
    conditions = [call.conditions[row] for row in rows]
    evaluations = [Evaluation(((0, 0, 0), row), WINDOW) for row in range(used)]
    return replace(call, latents=call.latents[rows], conditions=conditions, evaluations=evaluations)


@pytest.mark.parametrize("used", [(2, 2, 2, 2), (2, 8, 3, 1, 4, 2), (5, 5)])
def test_calls_that_are_not_full_share_one_of_their_shape(builtin: Adapter, used: tuple[int, ...]) -> None:
    calls = [padded(call, rows) for call, rows in zip(calls_of(builtin, 8, len(used)), used, strict=True)]
    joiner, forwards = CallJoiner(builtin), list[int]()
    assert_all_equal(builtin, calls, joiner, 8)
    handle = builtin.pipeline.unet.register_forward_pre_hook(
        lambda _, inputs: forwards.append(len(inputs[0]))
    )
    joiner.run(builtin, calls, 8)
    handle.remove()
    assert set(forwards) == {8} and len(forwards) == len(pack(calls))


def test_calls_are_packed_in_their_order() -> None:
    calls = [replace(call, latents=torch.zeros(8, 1, 1, 1)) for call in toy_calls(6)]
    used = [2, 8, 3, 1, 4, 2]
    calls = [replace(call, evaluations=[Any] * rows) for call, rows in zip(calls, used, strict=True)]
    packed = pack(calls)
    assert [each.used for each in packed] == [2, 8, 8, 2]
    assert [call.timestep for each in packed for call in each.calls] == [0, 1, 2, 3, 4, 5]


def test_a_call_that_fails_leaves_those_that_it_shares_a_call_with() -> None:
    model: Any = RoundsByRows(from_rows=100, fails_at=1.0)
    calls = [replace(call, latents=torch.ones(4, 1, 1, 1), evaluations=[Any]) for call in toy_calls(3)]
    calls = [replace(call, places=[Any] * 4, conditions=[0] * 4) for call in calls]
    found = CallJoiner(model).run(model, calls, 4)
    assert [isinstance(each, Tensor) for each in found] == [True, False, True]


@pytest.mark.parametrize("name", ["sd-epsilon", "sd-distilled", "sdxl"])
def test_joined_calls_of_other_unets(name: str, model_folders: dict[str, Path]) -> None:
    adapter = load_adapter(model_folders[name], CPU, "float32", read_model_info(model_folders[name]))
    assert_all_equal(adapter, calls_of(adapter, 1, 3), CallJoiner(adapter), 4)


@pytest.mark.parametrize("name", ["flux", "z-image"])
def test_joined_calls_of_transformers(name: str, tmp_path: Path) -> None:
    folder = tiny_transformers.save(name, tmp_path / name)
    adapter = load_adapter(folder, CPU, "float32", read_model_info(folder))
    assert_all_equal(adapter, calls_of(adapter, 1, 3), CallJoiner(adapter), 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(tiny_transformers.BUILDERS))
def test_joined_calls_of_all_transformers(name: str, tmp_path: Path) -> None:
    folder = tiny_transformers.save(name, tmp_path / name)
    adapter = load_adapter(folder, CPU, "float32", read_model_info(folder))
    assert_all_equal(adapter, calls_of(adapter, 1, 5), CallJoiner(adapter), 4)


@dataclass
class RoundsByRows:
    """A model whose results depend on the number of rows, from `from_rows` on, and which fails on request."""

    from_rows: int
    fails_at: float | None = None
    joined: list[int] = field(default_factory=list)
    network: nn.Module = field(default_factory=nn.Identity)

    def predict(self, latents: Tensor, timestep: float, *rest: Any) -> Tensor:
        if timestep == self.fails_at:
            raise ValueError("poison")
        return latents * 2 + (len(latents) >= self.from_rows)

    def join_key(self, call: ModelCall) -> Hashable:
        return call.latents.shape[1:]

    def predict_joined(self, calls: Sequence[ModelCall]) -> Tensor:
        self.joined.append(len(calls))
        if any(call.timestep == self.fails_at for call in calls):
            raise ValueError("poison")
        return self.predict(torch.cat([call.latents for call in calls]), 0.0)


def toy_calls(count: int) -> list[ModelCall]:
    rows = torch.arange(float(count)).view(count, 1, 1, 1, 1)
    empty: dict[str, Any] = {"text": None, "places": [], "conditions": [], "guidance_scale": 1.0}
    return [ModelCall(latents=row, timestep=float(number), **empty) for number, row in enumerate(rows)]


def test_a_shape_with_other_bits_is_not_used_again() -> None:
    model: Any = RoundsByRows(from_rows=4)
    joiner, calls = CallJoiner(model), toy_calls(8)
    assert_all_equal(model, calls, joiner, 8)
    model.joined.clear()
    joiner.run(model, calls, 8)
    assert model.joined == [2, 2, 2, 2]


def test_a_call_that_fails_leaves_the_others() -> None:
    model: Any = RoundsByRows(from_rows=99, fails_at=2.0)
    joiner, calls = CallJoiner(model), toy_calls(4)
    for _ in range(2):
        found = joiner.run(model, calls, 4)
        assert [type(each) for each in found] == [Tensor, Tensor, ValueError, Tensor]
    healthy = [call for call in toy_calls(5) if call.timestep != 2.0]
    model.joined.clear()
    assert_all_equal(model, healthy, joiner, 4)
    assert model.joined == [4, 4], "what failed says nothing about the shape"


def test_numbers_that_are_not_finite_say_nothing_about_a_shape() -> None:
    model: Any = RoundsByRows(from_rows=99)
    joiner, calls = CallJoiner(model), toy_calls(2)
    calls[0].latents[:] = torch.nan
    joiner.run(model, calls, 2)
    assert_all_equal(model, toy_calls(2), joiner, 2)
    assert model.joined == [2, 2, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"height": 200, "guidance_scale": 1.0},
        {"cross_attention": 0.3},
        {"width": 256, "blend": "shift", "window_batch": 3},
        {"boxes": [{"prompt": "a bowl", "x": 0.0, "y": 0.0, "width": 0.6, "height": 1.0}]},
    ],
)
def test_the_latents_of_an_image_stay_the_same(changes: dict[str, Any], builtin: Adapter) -> None:
    values = {"prompt": "a red vase", "width": 192, "height": 128, "steps": 3, "strength": 0.7}
    spec, group = Spec.from_mapping(values | changes), SingleRankGroup()
    calls = JoinedCalls(CallJoiner(builtin))
    expected = render_latents(spec, builtin, group, device=CPU).state.gather()
    found = render_latents(spec, builtin, group, device=CPU, calls=calls).state.gather()
    assert torch.equal(expected.latents, found.latents)
