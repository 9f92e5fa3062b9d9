"""Weights that are kept in 8 or 4 bits, by torchao.

Only weights are quantized: row by row of a matrix (int8, fp8), or in blocks of 64 (nf4). A layer computes in
the spec's dtype, with weights that are expanded for the call, so a row of a batch still depends on no other
row. Every rank quantizes on its CPU, with the same result everywhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from render.spec import NO_QUANTIZATION

_BLOCK, _SCALES = 64, 256
"""Weights that share a scale in nf4, and scales that share a scale of theirs (QLoRA, arXiv 2305.14314)."""
_kind: ContextVar[str] = ContextVar("quantization", default=NO_QUANTIZATION)
_log = logging.getLogger(__name__)


@contextmanager
def quantizing(kind: str) -> Iterator[None]:
    """While it is open, networks that `render.models.loading` loads are quantized to `kind`."""
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def is_quantized(class_name: str) -> bool:
    """Whether a network of this class is quantized now: all are but autoencoders."""
    return _kind.get() != NO_QUANTIZATION and not class_name.startswith("Autoencoder")


def quantize(network: nn.Module, dtype: torch.dtype) -> None:
    """Quantize the linear layers of a network on the CPU, one after another; the rest becomes `dtype`.

    Layers that the network's class wants in float32 are left out, and for nf4 those whose weights do not fill
    its blocks.
    """
    kind = _kind.get()
    apply = _quantizer(kind)
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, layer in network.named_modules():
        if type(layer) is not nn.Linear or any(each in name.split(".") for each in kept):
            continue
        layer.requires_grad_(False)
        layer.weight.data = layer.weight.data.to(dtype)
        if kind != "nf4" or layer.weight.numel() % (_BLOCK * _SCALES) == 0:
            apply(layer)
    for name, parameter in network.named_parameters():
        plain = type(parameter) is nn.Parameter and type(parameter.data) is Tensor
        if plain and parameter.is_floating_point() and not any(each in name.split(".") for each in kept):
            parameter.data = parameter.data.to(dtype)


def _quantizer(kind: str) -> Callable[[nn.Linear], None]:
    """Replaces a layer's weight by a quantized one, which `torch.nn.functional.linear` knows how to use."""
    with _quiet_torchao():
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, NF4Tensor, quantize_

    def to_nf4(layer: nn.Linear) -> None:
        weight = NF4Tensor.from_tensor(layer.weight.data, _BLOCK, _SCALES)
        layer.weight = nn.Parameter(weight, requires_grad=False)

    if kind == "nf4":
        return to_nf4
    config: Any = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]()
    return lambda layer: quantize_(layer, config)


@contextmanager
def _quiet_torchao() -> Iterator[None]:
    """Its kernels for GPUs of other kinds and its own deprecations do not belong in a rank's log."""
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    loggers = [logging.getLogger(name) for name in ("torch.utils._pytree", "torchao", "root")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
