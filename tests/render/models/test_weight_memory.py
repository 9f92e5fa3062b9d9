"""The bytes of the weights, told from headers, are those of the loaded networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from render.models import find_model_paths, load_adapter
from render.models.weight_memory import weight_bytes

CPU = torch.device("cpu")


def loaded_bytes(adapter: Any) -> int:
    networks = [each for each in adapter.pipeline.components.values() if isinstance(each, nn.Module)]
    return sum(value.numel() * value.element_size() for each in networks for value in each.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_a_number_format(model_folders: dict[str, Path], dtype: str) -> None:
    folder = model_folders["sdxl"]
    told = weight_bytes(find_model_paths(str(folder), None), dtype)
    assert told == loaded_bytes(load_adapter(folder, CPU, dtype))


def test_quantized_ones_are_smaller_by_their_linear_layers(model_folders: dict[str, Path]) -> None:
    folder = model_folders["sdxl"]
    adapter: Any = load_adapter(folder, CPU, "bfloat16")
    parts = (adapter.pipeline.unet, adapter.pipeline.text_encoder, adapter.pipeline.text_encoder_2)
    linear = sum(
        layer.weight.numel() for part in parts for layer in part.modules() if type(layer) is nn.Linear
    )
    paths = find_model_paths(str(folder), None)
    plain = weight_bytes(paths, "bfloat16")
    assert weight_bytes(paths, "bfloat16", "int8") == weight_bytes(paths, "bfloat16", "fp8") == plain - linear
    assert weight_bytes(paths, "bfloat16", "nf4") == pytest.approx(plain - linear * 1.484, abs=linear / 500)
    doubled = find_model_paths(str(folder), None, str(folder))
    assert weight_bytes(doubled, "bfloat16") > plain
