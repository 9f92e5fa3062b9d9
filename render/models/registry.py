"""The model families with an adapter, by the pipeline class that `model_index.json` names. No torch.

To add a family, write one file beside `sd.py` with a `load` function and add its entry here.
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
    """The declaration of a family: the parts of its folders, and the module that makes an adapter of one."""

    name: str
    module: str
    """Defines `load(path, info, device, dtype) -> Adapter`; imported only when a model is loaded."""
    parts: Mapping[str, tuple[str, ...]]
    """The parts in use, each with its allowed classes; an empty tuple allows any class of diffusers."""
    guidance_scale: float
    """The default of diffusers' pipeline."""
    optional: tuple[str, ...] = ()
    """The names in `parts` that may be null."""


UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of stock folders that are not read and not part of the digest."""

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
"""Models that do the last steps after another model; they cannot render alone."""

BASES = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLInpaintPipeline": "StableDiffusionXLPipeline",
}
"""Classes whose folders may hold a text-to-image model that was saved after another use: they are read as the
family's own class, unless the folder asks for an aesthetics score, as refiners do."""
