"""Layers over `Tiles` that several autoencoders have: convolutions, group norms, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from render.models.autoencoders.tile_store import Kept
from render.models.autoencoders.tiles import Tiles
from render.plan.attention_window import attended_tiles

Pointwise = Callable[[Tensor], Tensor]


def same(values: Tensor) -> Tensor:
    """The identity."""
    return values


def valid(conv: Any, values: Tensor, stride: int | None = None) -> Tensor:
    """A convolution without padding. Of a causal 3-D one (Qwen-Image's) only the last frame of the kernel,
    since the frames before the first one are zeros."""
    weight = conv.weight if conv.weight.dim() == 4 else conv.weight[:, :, -1]
    step = conv.stride[-1] if stride is None else stride
    return functional.conv2d(values, weight, conv.bias, stride=step, groups=conv.groups)


def convolve(
    tiles: Tiles,
    conv: Any,
    before: Pointwise = same,
    after: Callable[[Tensor, int], Tensor] | None = None,
    keep: bool = False,
    dtype: torch.dtype | None = None,
) -> Tiles:
    """A convolution of any odd kernel, padded with zeros at the end of the canvas. `before` is applied to its
    input, `after` to its output and the tile's number."""
    reach = conv.kernel_size[-1] // 2

    def run(patch: Any, index: int) -> Tensor:
        values = valid(conv, patch.padded(before(patch.values)))
        return values if after is None else after(values, index)

    return tiles.map(run, channels=conv.out_channels, reach=reach, keep=keep, dtype=dtype)


def upsample(tiles: Tiles, conv: Any) -> Tiles:
    """Nearest neighbors twice as dense, then a 3x3 convolution."""

    def run(patch: Any, index: int) -> Tensor:
        doubled = functional.interpolate(patch.values, scale_factor=2.0, mode="nearest")
        # The margin of one is two now, of which one is read.
        return valid(conv, patch.padded(patch.center(doubled)))

    return tiles.map(run, channels=conv.out_channels, reach=1, scale=tiles.scale * 2)


def downsample(tiles: Tiles, conv: Any) -> Tiles:
    """A 3x3 convolution of stride two, padded by one at the bottom and at the right only."""

    def run(patch: Any, index: int) -> Tensor:
        top, left, bottom, right = patch.margins
        values = functional.pad(patch.values[..., top:, left:], (0, 1 - right, 0, 1 - bottom))
        return valid(conv, values, 2)

    return tiles.map(run, channels=conv.out_channels, reach=1, scale=tiles.scale // 2)


def group_norm(tiles: Tiles, norm: Any) -> Pointwise:
    """A group norm by the statistics of the whole canvas. All ranks must call it.

    The variance is E[x^2] - E[x]^2 over sums in float64: of each tile first, then over the tiles in order.
    """
    groups, run = norm.num_groups, tiles.run
    sums = {index: _sums(tiles.read(index), groups) for index in run.own}
    total = run.total(sums, 2 * groups).view(2, groups)
    canvas = run.grid.canvas
    count = canvas.height * canvas.width * tiles.scale**2 * (tiles.channels // groups)
    mean, square = total / count
    deviation = ((square - mean * mean).clamp_min(0.0) + norm.eps).sqrt()
    each = tiles.channels // groups
    slope = norm.weight.detach().double().cpu() / deviation.repeat_interleave(each)
    offset = norm.bias.detach().double().cpu() - mean.repeat_interleave(each) * slope
    column = (1, -1, 1, 1)
    slope, offset = (values.float().to(run.device).view(column) for values in (slope, offset))

    def apply(values: Tensor) -> Tensor:
        return torch.addcmul(offset, values.float(), slope).to(values.dtype)

    return apply


def _sums(values: Tensor, groups: int) -> Tensor:
    """[2 * groups] float64: the sums of [1, C, h, w] and of its squares over each group of channels."""
    sums = torch.empty((2, groups), dtype=torch.float64, device=values.device)
    for number, group in enumerate(values.view(groups, -1)):
        exact = group.double()
        sums[0, number] = exact.sum()
        sums[1, number] = exact.square_().sum()
    return sums.flatten()


def attend(
    tiles: Tiles,
    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    finish: Callable[[Tensor, Tensor], Tensor],
) -> Tiles:
    """Self-attention of one head over the whole canvas, or over a window on a canvas too large for that
    (`render.plan.attention_window`). All ranks must call it.

    `project` maps a tile [1, C, h, w] to its queries, keys and values, [n, width] each; `finish` takes what a
    tile attends to, [n, width], and the tile. Keys are gone through tile by tile in their order with a
    running maximum (Milakov and Gimelshein 2018), so no matrix of all queries and keys is ever held.
    """
    run, width = tiles.run, tiles.channels
    wanted = {index: attended_tiles(run.grid, index, tiles.scale) for index in run.own}
    needed = set().union(*wanted.values()) if wanted else set()

    def keys_and_values(index: int) -> Tensor:
        tile = tiles.read(index)
        both = torch.cat(project(tile)[1:], dim=1)
        return both.T.reshape(1, 2 * width, *tile.shape[2:])

    made = run.make(keys_and_values, 2 * width, tiles.scale)
    kept: dict[int, Kept] = {}
    for index, values in made.rounds():
        if index in needed:
            kept[index] = run.store.keep(values.clone())
    made.drop_all()
    attended = Tiles(run, width, tiles.scale, tiles.dtype)
    for index in run.own:
        tile = tiles.take(index)
        pairs = (kept[number].read().flatten(2)[0].split(width) for number in wanted[index])
        attended.put(index, finish(_attention(project(tile)[0], pairs), tile))
    for each in kept.values():
        each.drop()
    return attended


def _attention(queries: Tensor, pairs: Iterator[tuple[Tensor, ...]]) -> Tensor:
    """[n, width] of softmax(q k^T / sqrt(width)) v over (keys, values), [width, m] each."""
    scaled = queries / math.sqrt(queries.shape[1])
    highest = torch.full((len(queries), 1), -math.inf, device=queries.device)
    weight = torch.zeros_like(highest)
    total = torch.zeros(queries.shape, dtype=torch.float32, device=queries.device)
    for keys, values in pairs:
        scores = (scaled @ keys).float()
        raised = torch.maximum(highest, scores.amax(dim=1, keepdim=True))
        shares = torch.exp(scores - raised)
        faded = torch.exp(highest - raised)
        weight = weight * faded + shares.sum(dim=1, keepdim=True)
        total = total * faded + (shares.to(values.dtype) @ values.T).float()
        highest = raised
    return (total / weight).to(queries.dtype)
