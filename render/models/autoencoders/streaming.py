"""Runs the layers of an `AutoencoderTiny` strip by strip: the same result in a fraction of the memory.

Layers without norms and attention read only the rows around a row. Rows are passed in a few at a time, each
convolution stores the rows that its next output reads again, and no activation is taller than a strip. Unlike
tiles, strips compute no row twice. This is the line buffer of hardware image pipelines, and the idea of
fused-layer networks (Alwani et al. 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

import torch
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn
from torch.nn import functional


class _Stage(Protocol):
    def push(self, rows: Tensor, last: bool) -> Tensor:
        """Take the next rows, [B, C, n, w]; return the output rows that are complete now, possibly none."""
        ...


def can_stream(layers: nn.Sequential) -> bool:
    """Whether all layers are of the kinds that this module supports."""
    parts = chain.from_iterable(
        layer.conv if isinstance(layer, AutoencoderTinyBlock) else [layer] for layer in layers
    )
    return all(_is_supported(part) for part in parts)


def run_streaming(layers: nn.Sequential, image: Tensor, rows: int) -> Tensor:
    """`layers(image)` for [B, C, h, w], `rows` rows at a time."""
    stages = [_stage(layer) for layer in layers]
    target, written = image.new_empty(0), 0
    waiting = list(_parts(image, rows, 0, True))
    while waiting:
        number, strip, last = waiting.pop()
        if number < len(stages):
            output = stages[number].push(strip, last)
            # With the last strip all stored rows are output at once; they are split into strips again.
            waiting += _parts(output, max(1, rows * output.shape[3] // image.shape[3]), number + 1, last)
            del output
        elif strip.shape[2]:
            if not written:
                # The layers scale both directions by the same factor.
                total = image.shape[2] * strip.shape[3] // image.shape[3]
                target = image.new_empty((*strip.shape[:2], total, strip.shape[3]))
            target[:, :, written : written + strip.shape[2]] = strip
            written += strip.shape[2]
        del strip
    return target


def _parts(strip: Tensor, rows: int, number: int, last: bool) -> Iterator[tuple[int, Tensor, bool]]:
    """The inputs of layer `number` from a strip, in parts, in reverse order: the caller uses a stack."""
    parts = strip.split(rows, dim=2)
    for at in reversed(range(len(parts))):
        yield number, parts[at], last and at == len(parts) - 1


def _is_supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (3, 3) and layer.padding == (1, 1) and layer.groups == 1
    if isinstance(layer, nn.Upsample):
        return layer.mode == "nearest"
    return isinstance(layer, (nn.ReLU, nn.SiLU, nn.GELU, nn.Mish))


def _stage(layer: Any) -> _Stage:
    if isinstance(layer, nn.Conv2d):
        return _Convolution(layer)
    return _Block(layer) if isinstance(layer, AutoencoderTinyBlock) else _Rowwise(layer)


class _Rowwise:
    """A layer in which each output row depends on one input row."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def push(self, rows: Tensor, last: bool) -> Tensor:
        # The output of zero rows has a width too; a padded row is passed through the layer to find it.
        empty = rows.shape[2] == 0
        output: Tensor = self._layer(functional.pad(rows, (0, 0, 0, 1)) if empty else rows)
        return output[:, :, :0] if empty else output


class _Convolution:
    """3x3, padded by one; stores the rows that its next output reads again."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._layer = layer
        self._carried: Tensor | None = None

    def push(self, rows: Tensor, last: bool) -> Tensor:
        layer, step = self._layer, self._layer.stride[0]
        padding = rows.new_zeros((*rows.shape[:2], 1, rows.shape[3]))
        above = padding if self._carried is None else self._carried
        rows = torch.cat([above, rows, padding] if last else [above, rows], dim=2)
        count = max(0, (rows.shape[2] - 3) // step + 1)
        self._carried = rows[:, :, count * step :].clone()
        if count == 0:
            return rows.new_empty((rows.shape[0], layer.out_channels, 0, -(-rows.shape[3] // step)))
        read = rows[:, :, : (count - 1) * step + 3]
        return functional.conv2d(read, layer.weight, layer.bias, stride=step, padding=(0, 1))


class _Block:
    """A residual block: rows of the skip connection are stored until the convolutions have output theirs."""

    def __init__(self, block: AutoencoderTinyBlock) -> None:
        self._block = block
        self._stages = [_stage(layer) for layer in block.conv]
        self._pending: Tensor | None = None

    def push(self, rows: Tensor, last: bool) -> Tensor:
        skipped: Tensor = self._block.skip(rows)
        waiting = skipped if self._pending is None else torch.cat([self._pending, skipped], dim=2)
        for stage in self._stages:
            rows = stage.push(rows, last)
        count = rows.shape[2]
        self._pending = waiting[:, :, count:].clone()
        output: Tensor = self._block.fuse(rows.add_(waiting[:, :, :count]))
        return output
