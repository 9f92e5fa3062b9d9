"""Models: a folder in diffusers' format in, an `Adapter` out. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from render.errors import ModelNotUsable
from render.models.adapter import Adapter, ModelFacts, NoiseSchedule, WindowPlace
from render.models.families import FAMILIES
from render.models.folder import family_of, read_facts, resolve_model
from render.models.pair import Folders, facts_of, find_models

if TYPE_CHECKING:
    import torch

__all__ = [
    "FAMILIES",
    "Adapter",
    "Folders",
    "ModelFacts",
    "NoiseSchedule",
    "WindowPlace",
    "facts_of",
    "find_models",
    "load_adapter",
    "load_models",
    "read_facts",
    "resolve_model",
]


def load_adapter(path: Path, device: torch.device, dtype: str, facts: ModelFacts | None = None) -> Adapter:
    """Load a model's networks onto a device. `dtype` is float32, bfloat16 or float16.

    `facts` saves hashing the weights again when the caller has read them already.
    Raises `ModelNotUsable` for a folder that cannot be used.
    """
    facts = facts or read_facts(path)
    module = importlib.import_module(family_of(path).module)
    return cast(Adapter, module.load(path, facts, device, dtype))


def load_models(
    folders: Folders, device: torch.device, dtype: str, facts: ModelFacts
) -> tuple[Adapter, Adapter | None]:
    """Load what a spec names, the model and its refiner if it has one; `facts` are those of both.

    Both stay resident. The refiner is told of windows in the model's terms, which laid them out.
    Raises `ModelNotUsable` for a folder that cannot be used.
    """
    model = load_adapter(folders.model, device, dtype, facts)
    if folders.refiner is None:
        return model, None
    try:
        return model, load_adapter(folders.refiner, device, dtype, facts)
    except ModelNotUsable as exc:
        raise ModelNotUsable("refiner", exc.value, exc.fix) from exc
