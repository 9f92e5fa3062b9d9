"""Tiny random ControlNets of the real classes, for the UNets of `tiny_folders`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from torch import nn

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
    parts = [
        network.controlnet_cond_embedding.conv_out,
        network.controlnet_mid_block,
        *network.controlnet_down_blocks,
    ]
    for part in parts:
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder, safe_serialization=True)
    return folder
