"""The training of a ControlNet: it begins as the UNet alone, and its steps change the ControlNet only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from diffusers import ControlNetModel

from render.builtin import WEIGHTS
from render.builtin.data import draw_part
from render.builtin.train_controlnet import ControlledDenoiser, edges, frozen_denoiser, main, new_controlnet


def test_an_untrained_network_changes_nothing() -> None:
    torch.manual_seed(0)
    denoiser = frozen_denoiser(WEIGHTS)
    model = ControlledDenoiser(denoiser, new_controlnet(denoiser.unet), torch.rand(2, 3, 64, 64))  # type: ignore[arg-type]
    inputs = (
        torch.randn(2, 16, 8, 8),
        torch.tensor([10, 700]),
        torch.ones(2, 24).long(),
        torch.full((2, 6), 64.0),
    )
    with torch.inference_mode():
        assert torch.equal(model(*inputs), denoiser(*inputs))


def test_edges_are_where_brightness_jumps() -> None:
    photo = np.zeros((32, 32, 3), np.uint8)
    photo[:, 16:] = 255
    rows, columns = np.nonzero(edges(photo))
    assert set(columns) <= {15, 16}
    assert len(set(rows)) > 20


def test_a_step_writes_a_controlnet_that_diffusers_loads(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    draw_part(data, 0, 12, 5)
    out = tmp_path / "controlnet"
    words = ["--data", data, "--weights", WEIGHTS, "--state", tmp_path / "state.pt", "--out", out]
    result = CliRunner().invoke(
        main, [*map(str, words), "--steps", "1", "--batch", "2"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert json.loads((out / "config.json").read_text())["conditioning_channels"] == 3
    network = ControlNetModel.from_pretrained(out)
    assert any(bool(weight.any()) for weight in network.controlnet_down_blocks.parameters())
