"""Tiny random ControlNets of the real classes, for the models of `tiny_folders` and `tiny_transformers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from torch import nn

from tests.render.models.tiny_transformers import WIDTH

WIDTHS = (8, 8, 16, 16)


def save_controlnet(folder: Path, model: Path, seed: int = 1) -> Path:
    """A ControlNet for the UNet of a model's folder."""
    torch.manual_seed(seed)
    return _saved(ControlNetModel.from_unet(_unet(model), conditioning_embedding_out_channels=WIDTHS), folder)


def save_union(folder: Path, model: Path, seed: int = 1) -> Path:
    """A ControlNet-Union for the UNet of a folder with SDXL."""
    torch.manual_seed(seed)
    network = ControlNetUnionModel(
        conditioning_embedding_out_channels=WIDTHS,
        num_trans_channel=16,
        num_trans_head=2,
        num_proj_channel=16,
        **{
            name: _unet(model).config[name]
            for name in (
                "in_channels",
                "down_block_types",
                "block_out_channels",
                "layers_per_block",
                "norm_num_groups",
                "cross_attention_dim",
                "attention_head_dim",
                "addition_embed_type",
                "addition_time_embed_dim",
                "projection_class_embeddings_input_dim",
            )
        },
    )
    return _saved(network, folder)


def _unet(model: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(
        model / "unet", local_files_only=True, low_cpu_mem_usage=False
    )


def _saved(network: Any, folder: Path) -> Path:
    # A new ControlNet answers with zeros, which no test could tell from none at all.
    _fill(
        network.controlnet_cond_embedding.conv_out,
        network.controlnet_mid_block,
        *network.controlnet_down_blocks,
    )
    network.save_pretrained(folder, safe_serialization=True)
    return folder


def _fill(*parts: nn.Module) -> None:
    for part in parts:
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)


def _flux(**options: Any) -> Any:
    network = diffusers.FluxControlNetModel(
        **{
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": WIDTH,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 4, 8),
            "guidance_embeds": True,
        }
        | options
    )
    _fill(network.controlnet_x_embedder, *network.controlnet_blocks, *network.controlnet_single_blocks)
    if network.input_hint_block is not None:
        _fill(network.input_hint_block.conv_out)
    return network


def _sd3(**options: Any) -> Any:
    network = diffusers.SD3ControlNetModel(
        **{
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_projection_dim": 32,
            "joint_attention_dim": WIDTH,
            "pooled_projection_dim": 32,
            "pos_embed_max_size": 8,
        }
        | options
    )
    _fill(network.pos_embed_input, *network.controlnet_blocks)
    return network


def _qwen_image(**options: Any) -> Any:
    network = diffusers.QwenImageControlNetModel(
        **{
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (4, 6, 6),
        }
        | options
    )
    _fill(network.controlnet_x_embedder, *network.controlnet_blocks)
    return network


def _z_image(**options: Any) -> Any:
    network = diffusers.ZImageControlNetModel(
        **{
            "control_layers_places": [0],
            "control_refiner_layers_places": [0],
            "control_in_dim": 4,
            "dim": 32,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
        }
        | options
    )
    for layer in network.control_layers:
        _fill(layer.before_proj, layer.after_proj)
    if options.get("add_control_noise_refiner") == "control_noise_refiner":
        for layer in network.control_noise_refiner:
            _fill(layer.before_proj, layer.after_proj)
    return network


TRANSFORMER_CONTROLNETS: dict[str, Callable[[], Any]] = {
    "flux": _flux,
    "flux-second": _flux,
    "flux-other": lambda: _flux(guidance_embeds=False),
    "flux-union": lambda: _flux(num_mode=7),
    "flux-of-pixels": lambda: _flux(conditioning_embedding_channels=4, patch_size=2),
    "sd3": lambda: _sd3(force_zeros_for_pooled_projection=True),
    "sd3-pooled": lambda: _sd3(force_zeros_for_pooled_projection=False),
    "sd3-without-text": lambda: _sd3(
        use_pos_embed=False, joint_attention_dim=None, force_zeros_for_pooled_projection=False
    ),
    "qwen-image": _qwen_image,
    "z-image": _z_image,
    "z-image-2": lambda: _z_image(control_in_dim=9, add_control_noise_refiner="control_noise_refiner"),
}
"""By name, which begins with that of its model in `tiny_transformers`."""


def save_transformer_controlnet(name: str, folder: Path) -> Path:
    """The tiny ControlNet of this name."""
    torch.manual_seed(5 + list(TRANSFORMER_CONTROLNETS).index(name))
    TRANSFORMER_CONTROLNETS[name]().save_pretrained(folder, safe_serialization=True)
    return folder
