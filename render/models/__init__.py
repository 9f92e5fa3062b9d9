"""Models: a folder in diffusers' format in, an `Adapter` out. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from render.errors import ModelNotUsable
from render.model_info import ModelInfo
from render.models.adapter import Adapter, WindowPlace
from render.models.folder import family_of, read_model_info, resolve_model
from render.models.libraries import import_libraries
from render.models.model_paths import ModelPaths, find_model_paths, model_info
from render.models.registry import FAMILIES
from render.sampling.schedule import NoiseSchedule
from render.spec import NO_QUANTIZATION

if TYPE_CHECKING:
    import torch

__all__ = [
    "FAMILIES",
    "Adapter",
    "ModelInfo",
    "ModelPaths",
    "NoiseSchedule",
    "WindowPlace",
    "find_model_paths",
    "load_adapter",
    "load_models",
    "model_info",
    "read_model_info",
    "resolve_model",
]


def load_adapter(
    path: Path,
    device: torch.device,
    dtype: str,
    info: ModelInfo | None = None,
    *,
    quantize: str = NO_QUANTIZATION,
) -> Adapter:
    """Load a model's networks onto a device. `dtype` is float32, bfloat16 or float16; see `Spec.quantize`.

    `info` saves hashing the weights again when the caller has read it already.
    Raises `ModelNotUsable` for a folder that cannot be used.
    """
    info = info or read_model_info(path)
    import_libraries()
    module = importlib.import_module(family_of(path).module)
    from render.models.quantization import quantizing

    with quantizing(quantize):
        return cast(Adapter, module.load(path, info, device, dtype))


def load_models(
    paths: ModelPaths,
    device: torch.device,
    dtype: str,
    info: ModelInfo,
    *,
    quantize: str = NO_QUANTIZATION,
) -> tuple[Adapter, Adapter | None]:
    """Load the model of a spec and its refiner if it has one; `info` is that of both (`model_info`).

    Both stay in memory. The refiner gets the same `info`, since windows are laid out for the model.
    Raises `ModelNotUsable` for a folder that cannot be used.
    """
    model = load_adapter(paths.model, device, dtype, info, quantize=quantize)
    if paths.vae is not None:
        from render.models.loading import replace_autoencoder

        replace_autoencoder(model, paths.vae, device, dtype)
    if paths.refiner is None:
        return model, None
    try:
        return model, load_adapter(paths.refiner, device, dtype, info, quantize=quantize)
    except ModelNotUsable as exc:
        raise ModelNotUsable("refiner", exc.value, exc.fix) from exc
