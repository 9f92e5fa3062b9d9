"""Autoencoders: one file per class of diffusers that a folder's `vae` may have. Importing this package
imports no torch.

To add one, write its file beside `kl.py`, add its geometry to `geometry.py`, and name it here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

from render.models.autoencoders.autoencoder import Autoencoder

if TYPE_CHECKING:
    import torch

__all__ = ["AUTOENCODERS", "Autoencoder", "open_autoencoder"]

AUTOENCODERS = {
    "AutoencoderDC": "render.models.autoencoders.dc.DeepCompression",
    "AutoencoderKL": "render.models.autoencoders.kl.KL",
    "AutoencoderKLFlux2": "render.models.autoencoders.flux2.Flux2",
    "AutoencoderKLHunyuanImage": "render.models.autoencoders.hunyuan_image.HunyuanImage",
    "AutoencoderKLQwenImage": "render.models.autoencoders.qwen_image.QwenImage",
    "AutoencoderKLQwenImage21": "render.models.autoencoders.qwen_image21.QwenImage21",
    "AutoencoderTiny": "render.models.autoencoders.tiny.Tiny",
}
"""diffusers' class -> the class here; imported only when one is opened."""


def open_autoencoder(network: Any, device: torch.device) -> Autoencoder:
    """The `Autoencoder` of a loaded network of one of diffusers' classes, which is on `device` already.

    Raises `KeyError` for a class without one: `render.models.folder` has checked that before.
    """
    module, _, name = AUTOENCODERS[type(network).__name__].rpartition(".")
    return cast(Autoencoder, getattr(importlib.import_module(module), name)(network, device))
