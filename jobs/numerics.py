"""The numerics of this machine: what decides the bits of its images, asked without importing torch."""

from __future__ import annotations

from render.launch.gpus import gpu_names
from render.numerics import Numerics, cpu_kind, numerics_of


def local_numerics(device: str = "auto") -> Numerics:
    """The numerics of renders on this machine's GPUs, or on its CPU without any or if `device` is "cpu"."""
    names = set() if device == "cpu" else set(gpu_names())
    return numerics_of(", ".join(sorted(names)) if names else cpu_kind())
