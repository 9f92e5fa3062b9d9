"""Encoded prompts in files, for ranks that have no text encoder; the tensors come back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

_LAYOUT = "layout"


def text_bytes(text: Any) -> bytes:
    """A file of what `Adapter.encode_prompt` returned: `TextStates`, or a mapping to tensors, lists of them
    and None."""
    is_states = not isinstance(text, Mapping)
    tensors: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    for name, value in (vars(text) if is_states else text).items():
        parts = value if isinstance(value, list) else [] if value is None else [value]
        # With their strides, which can decide which kernel multiplies a tensor.
        layout[name] = [type(value).__name__, [list(part.stride()) for part in parts]]
        tensors |= {f"{name}.{number}": part.cpu().contiguous().clone() for number, part in enumerate(parts)}
    return save(tensors, {_LAYOUT: json.dumps([is_states, layout])})


def read_text(path: Path, device: torch.device) -> Any:
    """What a file of `text_bytes` holds, on a device."""
    with safe_open(path, framework="pt") as file:
        is_states, layout = json.loads(file.metadata()[_LAYOUT])
        rows: dict[str, Any] = {}
        for name, (kind, strides) in layout.items():
            parts = [
                _strided(file.get_tensor(f"{name}.{number}"), stride).to(device)
                for number, stride in enumerate(strides)
            ]
            rows[name] = parts if kind == "list" else parts[0] if parts else None
    if not is_states:
        return rows
    # Not above: its module takes long to import, and whoever reads has a model loaded.
    from render.models.unet import TextStates

    return TextStates(**rows)


def _strided(tensor: Tensor, stride: list[int]) -> Tensor:
    # Always a copy: kernels may round by where a tensor lies, and in a file it lies anywhere.
    if 0 in stride:
        return tensor.clone()
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
