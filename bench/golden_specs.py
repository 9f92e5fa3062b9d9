"""The specs of `bench.golden` and the files that they name: a model with its refiner, init images.

Nothing here is imported from the tree that renders, so that any version of it can be given the same bytes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

BASE, REFINER = "sdxl-base", "sdxl-refiner"
PICTURE = "start.png"
_PICTURE_SIZE = 256, 192
_SAMPLE_SIZE, _TOKENS = 8, 16
_BETAS = {"beta_start": 0.0001, "beta_end": 0.002, "beta_schedule": "linear"}
"""Gentle ones: random networks do not predict the noise, and with Stable Diffusion's own, latents grow."""


def make_inputs(folder: Path) -> None:
    """Build what is not there yet. Both versions must be given the same folder: the bytes are in digests."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in ((BASE, _save_base), (REFINER, _save_refiner), (PICTURE, _save_picture)):
        target = folder / name
        if target.exists():
            continue
        # Renamed when it is whole, so that a build that was interrupted leaves nothing to be taken for one.
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as unfinished:
            built = Path(unfinished) / name
            build(built)
            os.sync()
            shutil.move(built, target)


def golden_specs(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> the values of a spec file; `folder` is where `make_inputs` has built."""
    specs = _grids() | _places() | _pictures(folder) | _ties() | _outputs()
    return {name: _COMMON | values for name, values in specs.items()}


_VASE = "a red vase on a wooden table"
_COMMON: dict[str, Any] = {
    "prompt": _VASE,
    "width": 256,
    "height": 256,
    "seed": 11,
    "steps": 4,
    "strength": 0.5,
    "tile_size": 128,
}
_WIDE, _TALL = {"width": 448, "height": 192}, {"width": 192, "height": 384}
_SQUARE, _LOW = {"width": 320, "height": 320}, {"width": 640, "height": 104}


def _grids() -> dict[str, dict[str, Any]]:
    """Both blends with all samplers, at several shapes."""
    return {
        "overlap-euler": {"tile_size": 512, "strength": 0.3, "seed": 0},
        "overlap-euler-ancestral": {"sampler": "euler-ancestral", **_WIDE},
        "overlap-ddim": {"sampler": "ddim", "guidance_scale": 3, **_TALL},
        "overlap-dpmpp-2m": {"sampler": "dpmpp-2m", **_SQUARE},
        "overlap-lcm": {"sampler": "lcm", "guidance_scale": 1.5},
        "shift-euler": {"blend": "shift", **_WIDE},
        "shift-euler-ancestral": {"blend": "shift", "sampler": "euler-ancestral", **_TALL},
        "shift-ddim": {"blend": "shift", "sampler": "ddim", **_SQUARE},
        "shift-dpmpp-2m": {"blend": "shift", "sampler": "dpmpp-2m", "guidance_scale": 3.0, **_LOW},
        "shift-lcm": {"blend": "shift", "sampler": "lcm", "format": "jpeg", "quality": 85},
    }


def _places() -> dict[str, dict[str, Any]]:
    """Region prompts, wrapped sides, tile sets."""
    bottle = "a blue bottle on a wooden table"
    boxes = [f"0,0,0.5,1: {_VASE}", f"0.5,0,0.5,1: {bottle}"]
    weighted = [
        {"prompt": _VASE, "x": 0.1, "y": 0.2, "width": 0.4, "height": 0.75, "weight": 0.8, "feather": 0.3},
        {"prompt": bottle, "x": 0.5, "y": 0, "width": 0.5, "height": 1, "weight": 0.5, "feather": 0},
    ]
    around = {"name": "bottle", "left": "a", "right": "a", "top": "b", "bottom": "b"}
    table = {"prompt": "a wooden table"}
    return {
        "boxes": {**table, "boxes": boxes, "width": 384, "height": 192},
        "boxes-weighted": {**table, "boxes": weighted, "negative_prompt": "a green mug", "blend": "shift"},
        "wrap-x": {"wrap": "x", "width": 384, "height": 192},
        "wrap-y": {"wrap": "y", "blend": "shift", "width": 192, "height": 320},
        "wrap-xy": {"wrap": "xy", "sampler": "dpmpp-2m"},
        "tile-set": {
            **table,
            "tile_set": ["vase: a,a,b,b", around],
            "boxes": boxes,
            "width": 384,
            "height": 192,
        },
    }


def _pictures(folder: Path) -> dict[str, dict[str, Any]]:
    """An init image, and a refiner."""
    init = {"prompt": "a blue vase on marble", "init": str(folder / PICTURE)}
    models = {"model": str(folder / BASE), "refiner": str(folder / REFINER)}
    return {
        "init": {**init, "strength": 0.7, "width": 256, "height": 192},
        "init-enlarged": {**init, "skip_residual": 0.5, "variation": 1, "width": 512, "height": 384},
        "refiner": {**models, "steps": 5, "strength": 0.6, "width": 192, "height": 128},
    }


def _ties() -> dict[str, dict[str, Any]]:
    """Hooks that steer by the whole canvas and by the previous stage."""
    learned = {"cross_attention": 1.0, "cross_attention_form": "learned"}
    return {
        "dilated-pooled": {"dilated": 0.7, "cross_attention": 1, "blend": "shift", **_SQUARE},
        "learned": {**learned, **_SQUARE},
        "residual-ilvr": {"skip_residual": 0.6, "ilvr": 0.4, "strength": 0.8},
    }


def _outputs() -> dict[str, dict[str, Any]]:
    """What else touches the pixels or the bytes of tiles."""
    small = {"steps": 2, "width": 192, "height": 192}  # A processor without bfloat16 is slow.
    return {
        "unguided": {"guidance_scale": 1, "variation": 2, "negative_prompt": "marble", "window_batch": 3},
        "bfloat16-webp": {**small, "dtype": "bfloat16", "format": "webp", "quality": 80},
    }


def _save_picture(file: Path) -> None:
    """Slow gradients under a fine texture."""
    from PIL import Image

    width, height = _PICTURE_SIZE
    pixels = bytes(
        value
        for y in range(height)
        for x in range(width)
        for value in (255 * x // width, 255 * y // height, (x * x + 3 * x * y + y * y) % 256)
    )
    Image.frombytes("RGB", _PICTURE_SIZE, pixels).save(file)


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[("r", "e"), ("re", "d</w>")],
        model_max_length=_TOKENS,
    )


def _text_config(width: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=_TOKENS,
        projection_dim=width,
        bos_token_id=54,
        eos_token_id=55,
        pad_token_id=55,
    )


def _unet(text_width: int, numbers: int) -> Any:
    """`numbers` of a picture (its size, its place, ...) enter beside the pooled text of 24 channels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=_SAMPLE_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=numbers * 8 + 24,
    )


def _vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        **more,
    )


def _scheduler() -> Any:
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1)


def _save_base(folder: Path) -> None:
    """SDXL's base, tiny and random: two text encoders, latents with a mean of their own."""
    import torch
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(2)
    StableDiffusionXLPipeline(
        vae=_vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.1, 2.0]),
        text_encoder=CLIPTextModel(_text_config(16)),
        tokenizer=_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(24)),
        tokenizer_2=_tokenizer(),
        unet=_unet(16 + 24, numbers=6),
        scheduler=_scheduler(),
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)


def _save_refiner(folder: Path) -> None:
    """One for it: the second text encoder alone, an aesthetic score in place of the size."""
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(3)
    StableDiffusionXLImg2ImgPipeline(
        vae=_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(24)),
        tokenizer_2=_tokenizer(),
        unet=_unet(24, numbers=5),
        scheduler=_scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
