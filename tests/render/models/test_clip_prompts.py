"""Long and weighted prompts on CLIP families: nothing is dropped, and short plain ones stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from render.models import load_adapter
from render.models.clip_prompts import SD_STATES, SDXL_STATES, encode_long, pooled
from tests.render.models.tiny_folders import TOKENS

LONG = "a red vase on a table. a blue mug beside it. and a green bowl behind both of them, in the light"


@pytest.fixture(scope="module", params=["sd-v", "sdxl", "sdxl-second-only"])
def adapter(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> Any:
    return load_adapter(model_folders[request.param], torch.device("cpu"), "float32")


def states(adapter: Any, prompt: str, negative: str = "") -> Any:
    return adapter.encode_prompt(prompt, negative, True)


def test_short_plain_prompts_are_encoded_as_the_stock_pipeline_does(adapter: Any) -> None:
    kind = SD_STATES if adapter.info.family == "sd" else SDXL_STATES
    short = states(adapter, "red", "a")
    assert short.states.shape[1] == TOKENS
    assert torch.equal(short.states, states(adapter, "red", "a").states)
    # The way of long prompts gives the same states: it differs in nothing but the length.
    assert (encode_long(adapter.pipeline, ["a", "red"], kind) - short.states).abs().max() < 1e-5
    if short.pooled is not None:
        assert (pooled(adapter.pipeline, ["a", "red"]) - short.pooled).abs().max() < 1e-5


def test_a_long_prompt_is_encoded_to_its_end(adapter: Any) -> None:
    whole = states(adapter, LONG)
    assert whole.states.shape[1] % TOKENS == 0 and whole.states.shape[1] > 2 * TOKENS
    other = states(adapter, LONG[:-5] + "night")
    assert not torch.equal(whole.states[1], other.states[1]), "its last word counts"
    assert torch.equal(whole.states[0], other.states[0])
    turned = states(adapter, "red", LONG)
    assert turned.states.shape == whole.states.shape


def test_weights_count_and_a_weight_of_one_changes_nothing(adapter: Any) -> None:
    plain, one = states(adapter, "a red"), states(adapter, "a (red:1.0)")
    assert (plain.states - one.states).abs().max() < 1e-5
    strong, weak = states(adapter, "a (red:1.5)"), states(adapter, "a (red:0.5)")
    for found in (strong, weak):
        assert found.states.shape == plain.states.shape
        assert (found.states[1] - plain.states[1]).abs().max() > 1e-3
    assert not torch.equal(strong.states, weak.states)


def test_the_unet_takes_long_states(adapter: Any) -> None:
    from tests.render.models.test_equals_stock import PLACE, unit_noise

    found = adapter.predict(unit_noise(), 500.0, states(adapter, LONG), [PLACE], [1], 4.0)
    assert torch.isfinite(found).all()
