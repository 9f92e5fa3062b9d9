"""Adapters with random weights in the shapes of SDXL, Flux.1 and Qwen-Image, made on a device.

Networks and autoencoders have the published widths, or with `tiny` a few channels. Text encoders are left
out: a prompt's states are random numbers of the right shape. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from render.model_info import ModelInfo
from render.models.flux import Flux
from render.models.loading import quiet
from render.models.qwen_image import QwenImage
from render.models.sdxl import StableDiffusionXL
from render.models.single_file import layouts
from render.models.unet import TextStates
from render.spec import SAMPLERS

_TINY_SIZE = 64
_NORM_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of the benchmark."""

    name: str
    gib: float
    """Of the weights in bfloat16, at full width."""
    call_tflop: float
    """Of one evaluation of a native window, at full width: twice its multiplications."""
    build: Callable[[torch.device, torch.dtype, bool], Any]

    def make(self, device: torch.device, dtype: torch.dtype, tiny: bool) -> Any:
        """An adapter, its weights made on the device."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with quiet():
                return self.build(device, dtype, tiny)
        finally:
            torch.set_default_dtype(before)


def _info(family: str, tiny: bool, **more: Any) -> ModelInfo:
    values: dict[str, Any] = {
        "family": family,
        "latent_channels": 16,
        "scale_factor": 8,
        "native_size": _TINY_SIZE if tiny else 1024,
        "digest": "0" * 64,
        "decode_halo": 0,
        "guidance_scale": 4.0,
        "layered_autoencoder": True,
        "attention_scale": 1,
        "samplers": ("euler",),
        "patch": 2,
    }
    return ModelInfo(**values | more)


def _kl(channels: int, tiny: bool) -> Any:
    config = dict(layouts()["sdxl"]["vae/config.json"]) | {"latent_channels": channels}
    if tiny:
        config |= {
            "block_out_channels": [16, 16, 16, 16],
            "norm_num_groups": _NORM_GROUPS,
            "layers_per_block": 1,
        }
    return diffusers.AutoencoderKL.from_config(config)


def _flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def _sdxl(device: torch.device, dtype: torch.dtype, tiny: bool) -> Any:
    layout = layouts()["sdxl"]
    config = dict(layout["unet/config.json"])
    if tiny:
        config |= {
            "block_out_channels": [32, 32, 64],
            "attention_head_dim": [2, 2, 4],
            "norm_num_groups": _NORM_GROUPS,
            "transformer_layers_per_block": 1,
            "sample_size": _TINY_SIZE // 8,
        }
    with device:
        unet, vae = diffusers.UNet2DConditionModel.from_config(config), _kl(4, tiny)
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae.to(dtype),
        unet=unet.to(dtype),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(layout["scheduler/scheduler_config.json"]),
        add_watermarker=False,
    )
    info = _info("sdxl", tiny, latent_channels=4, patch=1, samplers=SAMPLERS)
    adapter = StableDiffusionXL(pipeline, info, device, str(dtype).removeprefix("torch."))

    def encode(prompt: str, negative_prompt: str, guided: bool) -> TextStates:
        rows = 1 + guided
        return TextStates(
            states=torch.randn(rows, 77, config["cross_attention_dim"], device=device, dtype=dtype),
            pooled=torch.randn(rows, 1280, device=device, dtype=dtype),
        )

    adapter.encode_prompt = encode  # type: ignore[method-assign]
    return adapter


def _flux(device: torch.device, dtype: torch.dtype, tiny: bool) -> Any:
    narrow = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 4, 8),
    }
    with device:
        network = diffusers.FluxTransformer2DModel(guidance_embeds=True, **(narrow if tiny else {}))
        vae = _kl(16, tiny)
    pipeline = diffusers.FluxPipeline(
        scheduler=_flow(),
        vae=vae.to(dtype),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=network.to(dtype),
    )
    info = _info("flux", tiny, takes_guidance=True)
    adapter = Flux(pipeline, info, device, str(dtype).removeprefix("torch."))
    states = torch.randn(1, 512, network.config.joint_attention_dim, device=device, dtype=dtype)
    pooled = torch.randn(1, network.config.pooled_projection_dim, device=device, dtype=dtype)
    adapter.encode_prompt = lambda *_: {"states": states, "pooled": pooled}  # type: ignore[method-assign]
    return adapter


def _qwen(device: torch.device, dtype: torch.dtype, tiny: bool) -> Any:
    narrow = {
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    }
    with device:
        network = diffusers.QwenImageTransformer2DModel(**(narrow if tiny else {}))
        vae = diffusers.AutoencoderKLQwenImage(**({"base_dim": 8, "num_res_blocks": 1} if tiny else {}))
    pipeline = diffusers.QwenImagePipeline(
        scheduler=_flow(),
        vae=vae.to(dtype),
        text_encoder=None,
        tokenizer=None,
        transformer=network.to(dtype),
    )
    info = _info("qwen-image", tiny, takes_guidance=True)
    adapter = QwenImage(pipeline, info, device, str(dtype).removeprefix("torch."))
    states = torch.randn(2, 64, network.config.joint_attention_dim, device=device, dtype=dtype)
    mask = torch.ones(1, 64, device=device, dtype=torch.int64)
    rows = {"states": states[:1], "mask": mask, "negative": states[1:], "negative_mask": mask}
    adapter.encode_prompt = lambda *_: rows  # type: ignore[method-assign]
    return adapter


SHAPES = (
    Shape(name="sdxl", gib=5.0, call_tflop=6.0, build=_sdxl),
    Shape(name="flux", gib=22.3, call_tflop=120.0, build=_flux),
    Shape(name="qwen-image", gib=38.3, call_tflop=360.0, build=_qwen),
)
"""Qwen-Image makes two passes in an evaluation that is guided."""
