"""Bytes that a model's weights take in each rank's memory, from the headers of its files. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from render.gguf_file import is_gguf
from render.models.base_folder import original_file
from render.models.folder import networks_of, text_parts
from render.models.model_paths import ModelPaths
from render.models.original_layouts import TEXT_PREFIXES, VAE_PREFIXES
from render.models.weights import weight_files
from render.safetensors_file import read_header
from render.spec import NO_QUANTIZATION

_DTYPES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_QUANTIZED = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes of a weight; a row's scale is next to nothing, those of nf4 are its blocks'."""
_TABLES = (
    *("token_embedding", "position_embedding", "embed_tokens", "word_embeddings", "shared."),
    "relative_attention_bias",
)
"""In the names of tensors that have two dimensions and are not a linear layer's."""


def weight_bytes(paths: ModelPaths, dtype: str, quantize: str = NO_QUANTIZATION) -> int:
    """The weights of a model, its refiner and its other autoencoder, in a number format and quantized.

    `dtype` is float32, bfloat16 or float16; `quantize` as in `Spec.quantize`. Raises `ModelNotUsable`.
    """
    total = sum(
        _model_bytes(path, dtype, quantize) for path in (paths.model, paths.refiner) if path is not None
    )
    if paths.vae is not None:
        total += sum(_file_bytes(file, dtype, NO_QUANTIZATION) for file in weight_files(paths.vae))
    return round(total)


def text_encoder_bytes(paths: ModelPaths, dtype: str, quantize: str = NO_QUANTIZATION) -> int:
    """The part of `weight_bytes` that is text encoders, which one rank of a node has (`--text-encoder`)."""
    models = [path for path in (paths.model, paths.refiner) if path is not None]
    return round(sum(_text_bytes(path, dtype, quantize) for path in models))


def _text_bytes(path: Path, dtype: str, quantize: str) -> float:
    if path.is_file():
        return _file_bytes(path, dtype, quantize, TEXT_PREFIXES)
    total = 0.0
    parts = text_parts(path)
    for part in parts:
        single = original_file(path, part)
        files = weight_files(path / part) if single is None else ()
        total += sum(_file_bytes(file, dtype, quantize) for file in files)
    # A single file may hold several; their names tell them from the network.
    singles = {original_file(path, part) for part in parts}
    return total + sum(
        _file_bytes(file, dtype, quantize, TEXT_PREFIXES) for file in singles if file is not None
    )


def _model_bytes(path: Path, dtype: str, quantize: str) -> float:
    if path.is_file():
        return _file_bytes(path, dtype, quantize)
    kinds: dict[Path, str] = {}
    for part, (_, class_name) in networks_of(path).items():
        for file in weight_files(path / part):
            # A single file may hold several parts; the first is the network's or a text encoder's.
            kinds.setdefault(file.resolve(), class_name)
    return sum(
        _file_bytes(file, dtype, NO_QUANTIZATION if name.startswith("Autoencoder") else quantize)
        for file, name in kinds.items()
    )


def _file_bytes(file: Path, dtype: str, quantize: str, starts: tuple[str, ...] = ("",)) -> float:
    """Of the tensors whose names begin with one of `starts`."""
    if is_gguf(file):
        return file.stat().st_size  # stays as it is
    return sum(
        prod(tensor["shape"]) * _bytes_each(name, tensor, dtype, quantize)
        for name, tensor in read_header(file).items()
        if name.startswith(starts)
    )


def _bytes_each(name: str, tensor: Mapping[str, Any], dtype: str, quantize: str) -> float:
    linear = (
        len(tensor["shape"]) == 2 and name.endswith(".weight") and not any(each in name for each in _TABLES)
    )
    if quantize != NO_QUANTIZATION and linear and not name.startswith(VAE_PREFIXES):
        return _QUANTIZED[quantize]
    return _DTYPES[dtype]
