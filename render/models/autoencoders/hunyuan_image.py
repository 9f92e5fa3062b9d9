"""`AutoencoderKLHunyuanImage`: 32 pixels per latent, with group norms and shortcuts past its resampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from render.models.autoencoders.network import LayeredNetwork, to_pixels
from render.models.autoencoders.tile_layers import Pointwise, attend, convolve, group_norm, valid
from render.models.autoencoders.tiles import Patch, Tiles


class HunyuanImage(LayeredNetwork):
    """Scaled by `scaling_factor`."""

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder.encode`; undivided."""
        encoded = self._network.encode(self._from_pixels(pixels))
        return self._scaled(encoded.latent_dist.mode().float())

    @torch.no_grad()
    def decode_tiles(self, latents: Tiles) -> Tiles:
        """See `LayeredAutoencoder.decode_tiles`."""
        decoder = self._network.decoder

        def enter(patch: Patch, index: int) -> Tensor:
            values = self._unscaled(patch.values.to(self.dtype))
            repeated = patch.center(values).repeat_interleave(decoder.repeat, dim=1)
            return valid(decoder.conv_in, patch.padded(values)) + repeated

        channels = decoder.conv_in.out_channels
        tiles = latents.map(enter, channels=channels, reach=1, dtype=self.dtype)
        tiles = _middle(decoder.mid_block, tiles)
        for block in decoder.up_blocks:
            tiles = _up(block, tiles) if hasattr(block, "repeats") else _resnet(block, tiles)
        before = _activated(tiles, decoder.norm_out, decoder.nonlinearity)
        return convolve(
            tiles, decoder.conv_out, before, lambda values, index: to_pixels(values), dtype=torch.float32
        )

    @torch.no_grad()
    def encode_tiles(self, pixels: Tiles) -> Tiles:
        """See `LayeredAutoencoder.encode_tiles`."""
        encoder = self._network.encoder
        tiles = convolve(self._tiles_from_pixels(pixels), encoder.conv_in)
        for block in encoder.down_blocks:
            tiles = _down(block, tiles) if hasattr(block, "group_size") else _resnet(block, tiles)
        tiles = _middle(encoder.mid_block, tiles)
        before = _activated(tiles, encoder.norm_out, encoder.nonlinearity)

        def leave(patch: Patch, index: int) -> Tensor:
            means = patch.center(patch.values).unflatten(1, (-1, encoder.group_size)).mean(dim=2)
            moments = valid(encoder.conv_out, patch.padded(before(patch.values))) + means
            return self._scaled(moments.chunk(2, dim=1)[0].float())

        channels = encoder.conv_out.out_channels // 2
        return tiles.map(leave, channels=channels, reach=1, dtype=torch.float32)

    def _unscaled(self, latents: Tensor) -> Tensor:
        return latents / self._network.config.scaling_factor

    def _scaled(self, latents: Tensor) -> Tensor:
        return latents * float(self._network.config.scaling_factor)


def _middle(block: Any, tiles: Tiles) -> Tiles:
    tiles = _resnet(block.resnets[0], tiles)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        tiles = _resnet(resnet, _attention(attention, tiles))
    return tiles


def _resnet(block: Any, tiles: Tiles) -> Tiles:
    hidden = convolve(tiles, block.conv1, _activated(tiles, block.norm1, block.nonlinearity), keep=True)
    before = _activated(hidden, block.norm2, block.nonlinearity)
    return convolve(hidden, block.conv2, before, lambda values, index: values + tiles.take(index))


def _attention(block: Any, tiles: Tiles) -> Tiles:
    norm = group_norm(tiles, block.norm)

    def project(tile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = norm(tile)
        queries, keys, values = (
            each(normed).flatten(2)[0].T for each in (block.to_q, block.to_k, block.to_v)
        )
        return queries, keys, values

    def finish(attended: Tensor, tile: Tensor) -> Tensor:
        projected: Tensor = block.proj(attended.T.reshape(tile.shape))
        return projected + tile

    return attend(tiles, project, finish)


def _up(block: Any, tiles: Tiles) -> Tiles:
    def run(patch: Patch, index: int) -> Tensor:
        repeated = patch.center(patch.values).repeat_interleave(block.repeats, dim=1)
        return _unfolded(valid(block.conv, patch.padded(patch.values)) + repeated)

    channels = block.conv.out_channels // 4
    return tiles.map(run, channels=channels, reach=1, scale=tiles.scale * 2)


def _down(block: Any, tiles: Tiles) -> Tiles:
    def run(patch: Patch, index: int) -> Tensor:
        values = _folded(valid(block.conv, patch.padded(patch.values)))
        shortcut = _folded(patch.center(patch.values))
        return values + shortcut.unflatten(1, (values.shape[1], block.group_size)).mean(dim=2)

    channels = block.conv.out_channels * 4
    return tiles.map(run, channels=channels, reach=1, scale=tiles.scale // 2)


def _folded(values: Tensor) -> Tensor:
    """[1, C, 2 h, 2 w] -> [1, 4 C, h, w], the channels ordered by row, column, channel."""
    folded = functional.pixel_unshuffle(values, 2)
    return folded.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)


def _unfolded(values: Tensor) -> Tensor:
    """The reverse of `_folded`."""
    return functional.pixel_shuffle(values.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)


def _activated(tiles: Tiles, norm: Any, nonlinearity: Pointwise) -> Pointwise:
    normed = group_norm(tiles, norm)
    return lambda values: nonlinearity(normed(values))
