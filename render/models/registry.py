"""The model families that we have an adapter for, by the pipeline class that `model_index.json` names.

To add a family: write one file beside `sd.py` with a `load` function, and its entry here. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

_TEXT = ("CLIPTextModel",)
_TEXT_PROJECTED = ("CLIPTextModelWithProjection",)
_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
_VAE = ("AutoencoderKL", "AutoencoderTiny")
_UNET = ("UNet2DConditionModel",)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a model folder of one family holds, and which module turns it into an adapter."""

    name: str
    module: str
    """Has `load(path, facts, device, dtype) -> Adapter`; imported only when a model is loaded."""
    parts: Mapping[str, tuple[str, ...]]
    """The parts that we use, each with the classes that it may be; no names means any of diffusers' own."""
    guidance_scale: float
    """What diffusers' own pipeline guides with where nothing is said."""
    optional: tuple[str, ...] = ()
    """Those of `parts` that may be null."""


UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that stock folders hold and that we neither read nor count."""

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        name="sd",
        module="render.models.sd",
        parts={
            "scheduler": (),
            "text_encoder": _TEXT,
            "tokenizer": _TOKENIZER,
            "unet": _UNET,
            "vae": _VAE,
        },
        guidance_scale=7.5,
    ),
    "StableDiffusionXLPipeline": Family(
        name="sdxl",
        module="render.models.sdxl",
        parts={
            "scheduler": (),
            "text_encoder": _TEXT,
            "text_encoder_2": _TEXT_PROJECTED,
            "tokenizer": _TOKENIZER,
            "tokenizer_2": _TOKENIZER,
            "unet": _UNET,
            "vae": _VAE,
        },
        guidance_scale=5.0,
        optional=("text_encoder", "tokenizer"),
    ),
}
_SDXL = FAMILIES["StableDiffusionXLPipeline"]

REFINERS: dict[str, Family] = {
    "StableDiffusionXLImg2ImgPipeline": replace(
        _SDXL, name="sdxl-refiner", module="render.models.sdxl_refiner"
    ),
}
"""Models that finish what another has begun; they render nothing by themselves."""
