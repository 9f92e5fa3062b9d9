"""Trained cross-window attention: its computation, its part of a model's folder, and its training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from render.builtin.folder import new_scheduler, new_text_encoder, new_tokenizer, new_unet, tokens
from render.builtin.train_cross_window_attention import WINDOWS, WindowDenoiser, loss_of
from render.builtin.train_unet import Denoiser
from render.errors import BadInput, ModelNotUsable
from render.models import load_adapter, read_model_info
from render.models.adapter import WindowPlace
from render.models.cross_window_attention import cross_window_attention
from render.models.folder import OLD_TRAINED_ATTENTION, TRAINED_ATTENTION
from render.models.trained_cross_window_attention import (
    TrainedContext,
    TrainedCrossWindowAttention,
    load_trained_attention,
)
from render.plan.stages import make_stages
from render.spec import LEARNED, Spec
from tests.render.models.test_cross_window_attention import PLACES, inputs, network
from tests.render.models.tiny_folders import GENTLE_BETAS, save_sd

CPU = torch.device("cpu")
CHANNELS = 32


def trained(channels: int = CHANNELS) -> TrainedCrossWindowAttention:
    """With random output weights instead of trained ones: new ones are zero."""
    torch.manual_seed(3)
    attention = TrainedCrossWindowAttention(channels, 4).eval()
    torch.nn.init.normal_(attention.out.weight)
    return attention


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_sd(tmp_path_factory.mktemp("attention"), "epsilon", GENTLE_BETAS)
    trained().save(model)
    return model


@torch.no_grad()
def test_a_window_attends_to_the_tokens_of_its_condition_and_their_places() -> None:
    model, attention = network(), trained()
    states = torch.randn(3, 16, CHANNELS)
    near, far = (attention.tokens(states, places) for places in (PLACES, PLACES[::-1]))
    assert not torch.equal(near, far)

    def predictions(tokens: torch.Tensor | None, strength: float, conditions: list[int]) -> Any:
        context = TrainedContext.of(attention, tokens, strength)
        with cross_window_attention(model, context, PLACES, conditions):
            return model(**inputs(3))[0]

    plain, both = model(**inputs(3))[0], torch.stack([near, far])
    assert torch.equal(predictions(None, 1.0, [0, 0, 0]), plain)
    assert torch.equal(predictions(both, 0.0, [0, 0, 0]), plain)
    mixed = predictions(both, 1.0, [0, 1, 0])
    assert torch.equal(mixed[0], predictions(both, 1.0, [0, 0, 0])[0])
    assert torch.equal(mixed[1], predictions(both, 1.0, [1, 1, 1])[1])
    assert not torch.equal(mixed[1], predictions(both, 1.0, [0, 0, 0])[1])
    assert not torch.equal(mixed, plain)


@torch.no_grad()
def test_untrained_attention_adds_nothing() -> None:
    attention = TrainedCrossWindowAttention(CHANNELS, 4)
    states = torch.randn(3, 16, CHANNELS)
    added = attention(states, PLACES, *attention.project(torch.randn(3, 5, CHANNELS)))
    assert torch.equal(added, torch.zeros_like(states))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width", "cells"), [(64, 64, 16), (128, 64, 32), (96, 160, 15)])
def test_each_cell_attends_from_its_own_position(height: int, width: int, cells: int) -> None:
    place = WindowPlace(image_height=512, image_width=512, pixel_y=64, pixel_x=0, height=height, width=width)
    attention = trained()
    keys, values = attention.project(torch.randn(1, 5, CHANNELS))
    added = attention(torch.ones(1, cells, CHANNELS), [place], keys, values)
    assert len(added[0].unique(dim=0)) == cells


def test_it_is_loaded_from_the_models_folder(folder: Path, tmp_path: Path) -> None:
    info = read_model_info(folder)
    without = save_sd(tmp_path / "without", "epsilon", GENTLE_BETAS)
    assert info.has_cross_window_attention and not read_model_info(without).has_cross_window_attention
    assert info.digest != read_model_info(without).digest
    again = load_trained_attention(folder, CPU, torch.float32).state_dict()
    for name, value in trained().state_dict().items():
        assert torch.equal(again[name], value.half().float()), name

    adapter = load_adapter(folder, CPU, "float32", info)
    text = adapter.encode_prompt("red", "", True)
    given = torch.randn(2, 5, CHANNELS)

    def prediction(form: str, tokens: torch.Tensor | None) -> torch.Tensor:
        call: Any = (torch.ones(3, 4, 8, 8), 500.0, text, PLACES, [0, 1, 0], 3.0)
        context = adapter.prepare_context(tokens, 1.0, form)
        predicted, collected = adapter.predict_with_context(*call, context)
        assert collected.shape == (3, info.token_width)
        return predicted

    assert torch.equal(prediction("learned", None), prediction("pooled", None))
    assert not torch.equal(prediction("learned", given), prediction("learned", None))
    assert not torch.equal(prediction("learned", given), prediction("pooled", given))

    spec = Spec(prompt="x", width=256, height=256, cross_attention=0.5, cross_attention_form=LEARNED)
    make_stages(spec, info)
    make_stages(replace(spec, cross_attention=0.0), read_model_info(without))
    with pytest.raises(BadInput, match=r"cross_attention_form.*use pooled"):
        make_stages(spec, read_model_info(without))
    with pytest.raises(BadInput, match=r"cross_attention_form.*pooled, learned"):
        replace(spec, cross_attention_form="other")


def test_the_old_name_of_its_folder_is_read(folder: Path, tmp_path: Path) -> None:
    old = save_sd(tmp_path / "old", "epsilon", GENTLE_BETAS)
    shutil.copytree(folder / TRAINED_ATTENTION, old / OLD_TRAINED_ATTENTION)
    assert read_model_info(old).has_cross_window_attention
    again = load_trained_attention(old, CPU, torch.float32).state_dict()
    for name, value in load_trained_attention(folder, CPU, torch.float32).state_dict().items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("damage", ["no weights", "cut", "another width", "no config"])
def test_a_broken_part_is_refused(damage: str, tmp_path: Path) -> None:
    model = save_sd(tmp_path / "model", "epsilon", GENTLE_BETAS)
    trained().save(model)
    weights, config = (
        model / TRAINED_ATTENTION / "model.safetensors",
        model / TRAINED_ATTENTION / "config.json",
    )
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "another width":
        config.write_text(json.dumps({"channels": 64, "heads": 4}))
    else:
        config.unlink()
    with pytest.raises(ModelNotUsable, match=TRAINED_ATTENTION):
        load_adapter(model, CPU, "float32")


def test_in_training_windows_attend_to_their_own_image_alone() -> None:
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    denoiser = Denoiser(new_unet(), new_text_encoder(tokenizer)).eval().requires_grad_(False)
    attention, blank = trained(144), tokens(tokenizer, [""])
    draw = np.random.default_rng(0)
    count = 2 * WINDOWS
    rows = {
        "latents": draw.normal(size=(count, 16, 16, 16)).astype(np.float16),
        "below": draw.normal(size=(count, 16, 16, 16)).astype(np.float16),
        "ids": np.repeat(tokens(tokenizer, ["a red vase", "a blue mug"]).numpy(), WINDOWS, 0),
        "place": np.array([(512, 512, 48 * n, 32, 128, 128) for n in range(count // 2)] * 2, np.float32),
    }
    loss_of(denoiser, attention, rows, blank, new_scheduler().alphas_cumprod).backward()  # type: ignore[no-untyped-call]
    assert all(bool(weight.grad.abs().sum()) for weight in attention.parameters() if weight.grad is not None)
    assert sum(weight.grad is None for weight in attention.parameters()) == 0

    windows = WindowDenoiser(
        denoiser, attention, *(torch.from_numpy(rows[name]) for name in ("ids", "place"))
    )
    latents, levels = torch.from_numpy(rows["latents"]).float(), torch.full((count,), 500)
    with torch.no_grad():
        collected = windows.tokens(latents, levels)
        changed = collected.clone()
        changed[1] += 1.0
        before, after = (windows.predict(latents, levels, each) for each in (collected, changed))
    assert torch.equal(before[:WINDOWS], after[:WINDOWS])
    assert not torch.equal(before[WINDOWS:], after[WINDOWS:])
