"""The layers of diffusers' `Encoder` and `Decoder` (`diffusers.models.autoencoders.vae`) over tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from render.models.autoencoders.tile_layers import (
    Pointwise,
    attend,
    convolve,
    downsample,
    group_norm,
    same,
    upsample,
)
from render.models.autoencoders.tiles import Tiles


def decode_layers(decoder: Any, tiles: Tiles, finish: Callable[[Tensor, int], Tensor]) -> Tiles:
    """A `Decoder`; `finish` makes float32 of its output. Frees `tiles`."""

    tiles = _middle(decoder.mid_block, convolve(tiles, decoder.conv_in))
    for block in decoder.up_blocks:
        tiles = _blocks(block, tiles)
        for upsampler in block.upsamplers or ():
            tiles = upsample(tiles, upsampler.conv)
    before = _then(group_norm(tiles, decoder.conv_norm_out), decoder.conv_act)
    return convolve(tiles, decoder.conv_out, before, finish, dtype=torch.float32)


def encode_layers(encoder: Any, tiles: Tiles) -> Tiles:
    """An `Encoder`. Frees `tiles`."""
    tiles = convolve(tiles, encoder.conv_in)
    for block in encoder.down_blocks:
        tiles = _blocks(block, tiles)
        for downsampler in block.downsamplers or ():
            tiles = downsample(tiles, downsampler.conv)
    tiles = _middle(encoder.mid_block, tiles)
    before = _then(group_norm(tiles, encoder.conv_norm_out), encoder.conv_act)
    return convolve(tiles, encoder.conv_out, before)


def _blocks(block: Any, tiles: Tiles) -> Tiles:
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    for resnet, attention in zip(block.resnets, attentions, strict=True):
        tiles = _resnet(resnet, tiles)
        if attention is not None:
            tiles = _attention(attention, tiles)
    return tiles


def _middle(block: Any, tiles: Tiles) -> Tiles:
    tiles = _resnet(block.resnets[0], tiles)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            tiles = _attention(attention, tiles)
        tiles = _resnet(resnet, tiles)
    return tiles


def _resnet(block: Any, tiles: Tiles) -> Tiles:
    shortcut: Pointwise = same if block.conv_shortcut is None else block.conv_shortcut
    before = _then(group_norm(tiles, block.norm1), block.nonlinearity)
    hidden = convolve(tiles, block.conv1, before, keep=True)
    before = _then(group_norm(hidden, block.norm2), block.nonlinearity)

    def add(values: Tensor, index: int) -> Tensor:
        return (shortcut(tiles.take(index)) + values) / block.output_scale_factor

    return convolve(hidden, block.conv2, before, add)


def _attention(block: Any, tiles: Tiles) -> Tiles:
    assert block.heads == 1, "these blocks have one head"
    norm = group_norm(tiles, block.group_norm)

    def project(tile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = norm(tile).flatten(2)[0].T
        return block.to_q(tokens), block.to_k(tokens), block.to_v(tokens)

    def finish(attended: Tensor, tile: Tensor) -> Tensor:
        values = block.to_out[0](attended).T.reshape(tile.shape)
        return (values + tile if block.residual_connection else values) / block.rescale_output_factor

    return attend(tiles, project, finish)


def _then(first: Pointwise, second: Pointwise) -> Pointwise:
    return lambda values: second(first(values))
