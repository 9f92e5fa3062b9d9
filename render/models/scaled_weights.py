"""Single files whose weights are in float8 with a scale beside them, as ComfyUI reads and writes them.

A layer's `weight` in float8 times its scale is the weight. The scale, one number or one for each row, is
named `weight_scale`, or in older files `scale_weight`. What else such files say of a layer is about inputs,
which are never quantized here.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SCALES = ("weight_scale", "scale_weight")
_IGNORED = ("input_scale", "scale_input", "comfy_quant")
_MARKER = "scaled_fp8"


def unscaled(checkpoint: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The checkpoint with every scaled weight as the weight that it stands for, in `dtype`."""
    found = {}
    for name, tensor in checkpoint.items():
        layer, _, kind = name.rpartition(".")
        if kind in (*_SCALES, *_IGNORED) or name.endswith(_MARKER):
            continue
        scale = next((checkpoint[key] for each in _SCALES if (key := f"{layer}.{each}") in checkpoint), None)
        if kind == "weight" and scale is not None:
            tensor = _times(tensor, scale).to(dtype)
        found[name] = tensor
    return found


def _times(weight: Tensor, scale: Tensor) -> Tensor:
    """In float32; a scale for each row is [rows] or [rows, 1]."""
    rows = scale.float()
    if rows.numel() > 1:
        rows = rows.reshape(-1, *[1] * (weight.dim() - 1))
    return weight.float() * rows
