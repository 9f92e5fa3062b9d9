"""Tiny random autoencoders of the real classes."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

_LEVELS = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
}
_DC_LEVELS = {
    "attention_head_dim": 8,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (8, 8, 8, 16, 16, 16),
    "decoder_block_out_channels": (8, 8, 8, 16, 16, 16),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "latent_channels": 4,
}
_TINY = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (1, 1, 1, 1),
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "kl": ("AutoencoderKL", {**_LEVELS, "latent_channels": 4, "scaling_factor": 0.36, "shift_factor": 0.12}),
    "kl-moments": (
        "AutoencoderKL",
        {**_LEVELS, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.8, 1.1, 2.0]},
    ),
    "flux2": ("AutoencoderKLFlux2", {**_LEVELS, "latent_channels": 4}),
    "qwen": (
        "AutoencoderKLQwenImage",
        {
            "base_dim": 8,
            "z_dim": 4,
            "num_res_blocks": 1,
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [1.5, 0.8, 1.1, 2.0],
        },
    ),
    "qwen21": (
        "AutoencoderKLQwenImage21",
        {
            "base_dim": 8,
            "decoder_base_dim": 12,
            "z_dim": 4,
            "dim_mult": [1, 1, 1, 2, 2],
            "num_res_blocks": 1,
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [1.5, 0.8, 1.1, 2.0],
        },
    ),
    "hunyuan": (
        "AutoencoderKLHunyuanImage",
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 8,
            "block_out_channels": (32, 32, 64, 64),
            "layers_per_block": 1,
            "spatial_compression_ratio": 8,
            "sample_size": 64,
            "scaling_factor": 0.75,
        },
    ),
    "dc": (
        "AutoencoderDC",
        {
            **_DC_LEVELS,
            "encoder_layers_per_block": (1,) * 6,
            "decoder_layers_per_block": (1,) * 6,
            "scaling_factor": 0.41,
        },
    ),
    # Sana's own has no blocks at full resolution, interpolates, and has other norms in places.
    "dc-sana": (
        "AutoencoderDC",
        {
            **_DC_LEVELS,
            "encoder_layers_per_block": (0, 1, 1, 1, 1, 1),
            "decoder_layers_per_block": (0, 1, 1, 1, 1, 1),
            "upsample_block_type": "interpolate",
            "downsample_block_type": "conv",
            "decoder_norm_types": ("rms_norm",) * 3 + ("batch_norm",) * 3,
            "decoder_act_fns": ("relu",) * 3 + ("silu",) * 3,
        },
    ),
    "tiny": ("AutoencoderTiny", {**_TINY, "scaling_factor": 0.7}),
    "taef1": (
        "AutoencoderTiny",
        {**_TINY, "latent_channels": 16, "scaling_factor": 0.9, "shift_factor": 0.2},
    ),
}
"""By kind: diffusers' class and its options."""


@torch.no_grad()
def network(kind: str, **options: Any) -> Any:
    """A network whose norms do something: their weights and statistics are random too."""
    name, config = CONFIGS[kind]
    torch.manual_seed(3)
    made = getattr(diffusers, name)(**{**config, **options}).eval()
    draw = torch.Generator().manual_seed(4)
    for module in made.modules():
        if "norm" in type(module).__name__.lower():
            for parameter in module.parameters(recurse=False):
                parameter += torch.randn(parameter.shape, generator=draw) * 0.2
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean += torch.randn(module.running_mean.shape, generator=draw) * 0.2
                module.running_var *= 1.7
    return made
