"""Models: a folder in diffusers' format in, an `Adapter` out. Importing this package imports no torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from render.models.adapter import Adapter, ModelFacts, NoiseSchedule, WindowPlace
from render.models.families import FAMILIES
from render.models.folder import family_of, read_facts, resolve_model

if TYPE_CHECKING:
    import torch

__all__ = [
    "FAMILIES",
    "Adapter",
    "ModelFacts",
    "NoiseSchedule",
    "WindowPlace",
    "load_adapter",
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
