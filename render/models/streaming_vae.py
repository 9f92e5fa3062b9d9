"""An `AutoencoderTiny`'s layers run strip by strip: the same numbers in a fraction of the memory.

Layers without norms and attention read only the rows around a row. So rows go in a few at a time, each
convolution keeps the ones that its next rows read too, and no activation is longer than a strip. Unlike
tiles, strips compute no row twice. (The line buffers of hardware image pipelines, and "fused-layer"
networks, Alwani et al. 2016.)
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
        """Take the next rows [B, C, n, w]; give the rows that are complete now, perhaps none."""
        ...


def can_stream(layers: nn.Sequential) -> bool:
    """Whether all layers are of the kinds that this module knows."""
    parts = chain.from_iterable(
        layer.conv if isinstance(layer, AutoencoderTinyBlock) else [layer] for layer in layers
    )
    return all(_fits(part) for part in parts)


def run_streaming(layers: nn.Sequential, image: Tensor, rows: int) -> Tensor:
    """`layers(image)` for [B, C, h, w], `rows` rows at a time."""
    stages = [_stage(layer) for layer in layers]
    target, done = image.new_empty(0), 0
    waiting = list(_parts(image, rows, 0, True))
    while waiting:
        number, strip, last = waiting.pop()
        if number < len(stages):
            made = stages[number].push(strip, last)
            # What the layers have kept comes out with the last strip, at once; it goes on in strips too.
            waiting += _parts(made, max(1, rows * made.shape[3] // image.shape[3]), number + 1, last)
            del made
        elif strip.shape[2]:
            if not done:
                # The layers halve or double both directions alike.
                total = image.shape[2] * strip.shape[3] // image.shape[3]
                target = image.new_empty((*strip.shape[:2], total, strip.shape[3]))
            target[:, :, done : done + strip.shape[2]] = strip
            done += strip.shape[2]
        del strip
    return target


def _parts(strip: Tensor, rows: int, number: int, last: bool) -> Iterator[tuple[int, Tensor, bool]]:
    """What layer `number` takes of a strip, in parts, the first one last."""
    parts = strip.split(rows, dim=2)
    for at in reversed(range(len(parts))):
        yield number, parts[at], last and at == len(parts) - 1


def _fits(layer: nn.Module) -> bool:
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
    """A layer whose rows do not know of each other."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def push(self, rows: Tensor, last: bool) -> Tensor:
        # No rows are still of some width, which an upsampling does not tell unless it is given one.
        none = rows.shape[2] == 0
        answer: Tensor = self._layer(functional.pad(rows, (0, 0, 0, 1)) if none else rows)
        return answer[:, :, :0] if none else answer


class _Convolution:
    """3x3, padded by one; keeps the rows that its next output reads as well."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._layer = layer
        self._kept: Tensor | None = None

    def push(self, rows: Tensor, last: bool) -> Tensor:
        layer, step = self._layer, self._layer.stride[0]
        padding = rows.new_zeros((*rows.shape[:2], 1, rows.shape[3]))
        before = padding if self._kept is None else self._kept
        rows = torch.cat([before, rows, padding] if last else [before, rows], dim=2)
        count = max(0, (rows.shape[2] - 3) // step + 1)
        self._kept = rows[:, :, count * step :].clone()
        if count == 0:
            return rows.new_empty((rows.shape[0], layer.out_channels, 0, -(-rows.shape[3] // step)))
        read = rows[:, :, : (count - 1) * step + 3]
        return functional.conv2d(read, layer.weight, layer.bias, stride=step, padding=(0, 1))


class _Block:
    """A residual block: what goes past the convolutions waits for what comes out of them."""

    def __init__(self, block: AutoencoderTinyBlock) -> None:
        self._block = block
        self._stages = [_stage(layer) for layer in block.conv]
        self._waiting: Tensor | None = None

    def push(self, rows: Tensor, last: bool) -> Tensor:
        past: Tensor = self._block.skip(rows)
        waiting = past if self._waiting is None else torch.cat([self._waiting, past], dim=2)
        for stage in self._stages:
            rows = stage.push(rows, last)
        count = rows.shape[2]
        self._waiting = waiting[:, :, count:].clone()
        answer: Tensor = self._block.fuse(rows.add_(waiting[:, :, :count]))
        return answer
