"""The numerics of this machine: what decides the bits of its images, asked without importing torch."""

from __future__ import annotations

from jobs.text_encoder import node_text_encoder
from render.launch.gpus import gpu_names
from render.launch.request import ON_CPU
from render.numerics import Numerics, cpu_kind, numerics_of


def local_numerics(device: str = "auto", text_encoder: str | None = None) -> Numerics:
    """The numerics of renders on this machine's GPUs, or on its CPU without any or if `device` is "cpu".

    `text_encoder` is where prompts are encoded, one of `render.launch.request.TEXT_ENCODERS`; None for the
    node's setting.
    """
    names = set() if device == "cpu" else set(gpu_names())
    if not names:
        return numerics_of(cpu_kind())
    kinds = ", ".join(sorted(names))
    if (text_encoder or node_text_encoder()) == ON_CPU:
        kinds = f"{kinds}; prompts: {cpu_kind()}"
    return numerics_of(kinds)
