"""Tiny random IP-Adapters in the format of their publishers, for the UNets of `tiny_folders`."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

HIDDEN, PROJECTED, SIDE = 16, 24, 32
_PLUS = 64
"""Width of a Plus adapter's own layers: one head."""


def save_ip_adapter(folder: Path, model: Path, *, plus: bool = False, seed: int = 1) -> Path:
    """An adapter's file with its image encoder beside it; returns the file."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=HIDDEN,
            intermediate_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=16,
            projection_dim=PROJECTED,
        )
    )
    encoder.save_pretrained(folder / "image_encoder", safe_serialization=True)
    unet = UNet2DConditionModel.from_pretrained(model / "unet", low_cpu_mem_usage=False)
    width = unet.config.cross_attention_dim
    tensors = {
        f"image_proj.{name}": tensor for name, tensor in (_plus(width) if plus else _plain(width)).items()
    }
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(layers):
        to_k = unet.get_submodule(name.removesuffix(".processor")).to_k
        for key in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * number + 1}.{key}.weight"] = torch.randn(to_k.weight.shape) * 0.3
    file = folder / f"ip-adapter{'-plus' if plus else ''}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def _plain(width: int, tokens: int = 4) -> dict[str, Tensor]:
    return {
        "proj.weight": torch.randn(tokens * width, PROJECTED) * 0.3,
        "proj.bias": torch.randn(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }


def _plus(width: int, tokens: int = 4) -> dict[str, Tensor]:
    def linear(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns) * 0.1

    found = {
        "latents": torch.randn(1, tokens, _PLUS),
        "proj_in.weight": linear(_PLUS, HIDDEN),
        "proj_in.bias": torch.zeros(_PLUS),
        "proj_out.weight": linear(width, _PLUS),
        "proj_out.bias": torch.zeros(width),
        "norm_out.weight": torch.ones(width),
        "norm_out.bias": torch.zeros(width),
    }
    for layer in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            found[f"layers.{layer}.{norm}.weight"] = torch.ones(_PLUS)
            found[f"layers.{layer}.{norm}.bias"] = torch.zeros(_PLUS)
        found[f"layers.{layer}.0.to_q.weight"] = linear(_PLUS, _PLUS)
        found[f"layers.{layer}.0.to_kv.weight"] = linear(2 * _PLUS, _PLUS)
        found[f"layers.{layer}.0.to_out.weight"] = linear(_PLUS, _PLUS)
        found[f"layers.{layer}.1.1.weight"] = linear(4 * _PLUS, _PLUS)
        found[f"layers.{layer}.1.3.weight"] = linear(_PLUS, 4 * _PLUS)
    return found
