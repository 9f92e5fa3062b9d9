"""A model's text encoders by themselves: put on a loaded pipeline and taken off again."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from render.models.folder import is_text_part, networks_of, text_parts
from render.models.loading import DTYPES, load_network, loading
from render.models.quantization import is_quantized, quantize, quantizing
from render.models.skeletons import put_skeletons

CPU_THREADS = 4
"""Threads that encode on the CPU beside a GPU; a fixed number, since kernels split their sums by threads."""


def put_text_encoders(pipeline: Any, path: Path, device: torch.device, dtype: str, quantization: str) -> None:
    """Load a model's text encoders onto a device and give them to its pipeline.

    Raises `ModelNotUsable` when they do not load.
    """
    with loading(path), quantizing(quantization):
        found = _of_file(path, dtype) if path.is_file() else _of_folder(path, dtype)
    pipeline.register_modules(**{part: network.to(device) for part, network in found.items()})


def remove_text_encoders(pipeline: Any, path: Path) -> None:
    """Free a pipeline's text encoders; skeletons take their place."""
    with loading(path):
        put_skeletons(pipeline, path)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def without_network(pipeline: Any, device: torch.device) -> Iterator[None]:
    """While it is open, all of a pipeline but its text encoders is on the CPU instead of its device."""
    networks = [
        network
        for part, network in pipeline.components.items()
        if isinstance(network, torch.nn.Module) and not is_text_part(part)
    ]
    for network in networks:
        network.to("cpu")
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        for network in networks:
            network.to(device)


@contextmanager
def encoding_on(adapter: Any, device: torch.device) -> Iterator[Any]:
    """An adapter of the same networks whose `encode_prompt` works on a device."""
    other = copy.copy(adapter)
    other._device = device
    threads = torch.get_num_threads()
    if device.type == "cpu" and adapter._device.type != "cpu":
        torch.set_num_threads(CPU_THREADS)
    try:
        yield other
    finally:
        torch.set_num_threads(threads)


def _of_folder(path: Path, dtype: str) -> dict[str, Any]:
    return {part: load_network(path, part, kind, dtype) for part, kind in text_parts(path).items()}


def _of_file(path: Path, dtype: str) -> dict[str, Any]:
    from render.models.single_file_loading import load_components

    others = dict.fromkeys(part for part in networks_of(path) if part not in text_parts(path))
    found = {
        part: network
        for part, network in load_components(path, DTYPES[dtype], others).items()
        if part in text_parts(path)
    }
    for network in found.values():
        if is_quantized(type(network).__name__):
            quantize(network, DTYPES[dtype])
    return found
