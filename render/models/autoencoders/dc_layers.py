"""The layers of `AutoencoderDC` (`diffusers.models.autoencoders.autoencoder_dc`) over tiles.

Its norms look at one pixel's channels. Its linear attention needs one matrix per head of the whole canvas,
the sum of value x key over all pixels, which is added up like the statistics of a group norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from render.models.autoencoders.tile_layers import convolve, valid
from render.models.autoencoders.tiles import Patch, Tiles


def decode_layers(decoder: Any, tiles: Tiles) -> Tiles:
    """A `Decoder`. Frees `tiles`."""
    conv, repeats = decoder.conv_in, decoder.in_shortcut_repeats if decoder.in_shortcut else 0

    def enter(patch: Patch, index: int) -> Tensor:
        values = valid(conv, patch.padded(patch.values))
        center = patch.center(patch.values)
        return values + center.repeat_interleave(repeats, dim=1) if repeats else values

    tiles = tiles.map(enter, channels=conv.out_channels, reach=1)
    for blocks in reversed(decoder.up_blocks):
        for block in blocks:
            tiles = _block(block, tiles)

    def activated(values: Tensor) -> Tensor:
        return decoder.conv_act(_by_channel(decoder.norm_out, values))

    tiles = tiles.map(lambda patch, index: activated(patch.values), channels=tiles.channels)
    return _block(decoder.conv_out, tiles)


def encode_layers(encoder: Any, tiles: Tiles) -> Tiles:
    """An `Encoder`. Frees `tiles`."""
    tiles = _block(encoder.conv_in, tiles)
    for blocks in encoder.down_blocks:
        for block in blocks:
            tiles = _block(block, tiles)
    group = encoder.out_shortcut_average_group_size if encoder.out_shortcut else 0

    def leave(patch: Patch, index: int) -> Tensor:
        values = valid(encoder.conv_out, patch.padded(patch.values))
        return values + patch.center(patch.values).unflatten(1, (-1, group)).mean(dim=2) if group else values

    return tiles.map(leave, channels=encoder.conv_out.out_channels, reach=1)


def _block(block: Any, tiles: Tiles) -> Tiles:
    kind = type(block).__name__
    if kind == "Conv2d":
        return convolve(tiles, block)
    if kind == "ResBlock":
        return _resblock(block, tiles)
    if kind == "EfficientViTBlock":
        return _gated(block.conv_out, _attention(block.attn, tiles))
    assert kind in ("DCUpBlock2d", "DCDownBlock2d"), "the class has no other blocks"
    return _up(block, tiles) if kind == "DCUpBlock2d" else _down(block, tiles)


def _resblock(block: Any, tiles: Tiles) -> Tiles:
    hidden = convolve(tiles, block.conv1, after=lambda values, index: block.nonlinearity(values), keep=True)

    def add(values: Tensor, index: int) -> Tensor:
        return _normed(block.norm, values) + tiles.take(index)

    return convolve(hidden, block.conv2, after=add)


def _gated(block: Any, tiles: Tiles) -> Tiles:
    """`GLUMBConv`."""

    def run(patch: Patch, index: int) -> Tensor:
        values = patch.padded(block.nonlinearity(block.conv_inverted(patch.values)))
        values, gate = valid(block.conv_depth, values).chunk(2, dim=1)
        values = block.conv_point(values * block.nonlinearity(gate))
        if block.norm is not None:
            values = _by_channel(block.norm, values)
        return values + patch.center(patch.values) if block.residual_connection else values

    return tiles.map(run, channels=block.conv_point.out_channels, reach=1)


def _attention(block: Any, tiles: Tiles) -> Tiles:
    """`SanaMultiscaleLinearAttention`. Where the canvas is smaller than a head, diffusers forms the products
    in the other order, which rounds differently and is the same otherwise."""
    run, width = tiles.run, block.attention_head_dim
    reach = max((scale.proj_in.kernel_size[0] // 2 for scale in block.to_qkv_multiscale), default=0)

    def projected(patch: Patch) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [heads, width, n], float32."""
        tokens = patch.values.movedim(1, -1)
        linear = torch.cat([block.to_q(tokens), block.to_k(tokens), block.to_v(tokens)], dim=3).movedim(-1, 1)
        scales = [patch.center(linear)]
        for scale in block.to_qkv_multiscale:
            spare = reach - scale.proj_in.kernel_size[0] // 2
            padded = patch.padded(linear)
            padded = padded[..., spare : padded.shape[-2] - spare, spare : padded.shape[-1] - spare]
            scales.append(scale.proj_out(valid(scale.proj_in, padded)))
        heads = torch.cat(scales, dim=1).float().flatten(2)[0].unflatten(0, (-1, 3 * width))
        queries, keys, values = heads.chunk(3, dim=1)
        return block.nonlinearity(queries), block.nonlinearity(keys), values

    sums = {}
    shape: tuple[int, ...] = (block.to_out.in_features // width, width + 1, width)
    count = shape[0] * shape[1] * shape[2]
    for index, patch in tiles.patches(reach):
        _, keys, values = projected(patch)
        ones = functional.pad(values, (0, 0, 0, 1), value=1.0)
        sums[index] = (ones @ keys.transpose(1, 2)).double().flatten()
    scores = run.total(sums, count).view(shape).float().to(run.device)

    def attend(patch: Patch, index: int) -> Tensor:
        attended = scores @ projected(patch)[0]
        attended = attended[:, :-1] / (attended[:, -1:] + block.eps)
        center = patch.center(patch.values)
        attended = attended.to(center.dtype).flatten(0, 1).view(1, -1, *center.shape[2:])
        values = _normed(block.norm_out, block.to_out(attended.movedim(1, -1)).movedim(-1, 1))
        return values + center if block.residual_connection else values

    return tiles.map(attend, channels=block.to_out.out_features, reach=reach)


def _up(block: Any, tiles: Tiles) -> Tiles:
    def run(patch: Patch, index: int) -> Tensor:
        center = patch.center(patch.values)
        if block.interpolate:
            doubled = functional.interpolate(patch.values, scale_factor=2, mode=block.interpolation_mode)
            # The margin of one is two now, of which one is read.
            values = valid(block.conv, patch.padded(patch.center(doubled)))
        else:
            values = functional.pixel_shuffle(valid(block.conv, patch.padded(patch.values)), 2)
        if not block.shortcut:
            return values
        return values + functional.pixel_shuffle(center.repeat_interleave(block.repeats, dim=1), 2)

    channels = block.conv.out_channels // (1 if block.interpolate else 4)
    return tiles.map(run, channels=channels, reach=1, scale=tiles.scale * 2)


def _down(block: Any, tiles: Tiles) -> Tiles:
    def run(patch: Patch, index: int) -> Tensor:
        values = valid(block.conv, patch.padded(patch.values))
        if block.downsample:
            values = functional.pixel_unshuffle(values, 2)
        if not block.shortcut:
            return values
        folded = functional.pixel_unshuffle(patch.center(patch.values), 2)
        return values + folded.unflatten(1, (-1, block.group_size)).mean(dim=2)

    channels = block.conv.out_channels * (4 if block.downsample else 1)
    return tiles.map(run, channels=channels, reach=1, scale=tiles.scale // 2)


def _normed(norm: Any, values: Tensor) -> Tensor:
    return norm(values) if isinstance(norm, torch.nn.BatchNorm2d) else _by_channel(norm, values)


def _by_channel(norm: Any, values: Tensor) -> Tensor:
    """A norm of each pixel's channels."""
    return norm(values.movedim(1, -1)).movedim(-1, 1)
