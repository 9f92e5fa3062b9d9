"""`AutoencoderKLQwenImage`: a video autoencoder, used for one frame.

Of its causal 3-D kernels one frame meets the last slice alone, and its resampling in time does nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from render.models.autoencoders.network import LayeredNetwork, channel_moments, to_pixels
from render.models.autoencoders.tile_layers import (
    Pointwise,
    attend,
    convolve,
    downsample,
    same,
    upsample,
    valid,
)
from render.models.autoencoders.tiles import Patch, Tiles


class QwenImage(LayeredNetwork):
    """Standardized by means and deviations per channel; the network's frame axis has length one."""

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.decode`; undivided."""
        latents = self._unscaled(latents.to(self._device, self.dtype))
        pixels: Tensor = self._network.decode(latents[:, :, None], return_dict=False)[0][:, :, 0]
        return to_pixels(pixels[:, :3])

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder.encode`; undivided."""
        frames = self._from_pixels(pixels)[:, :, None]
        return self._scaled(self._network.encode(frames).latent_dist.mode()[:, :, 0].float())

    @torch.no_grad()
    def decode_tiles(self, latents: Tiles) -> Tiles:
        """See `LayeredAutoencoder.decode_tiles`."""
        decoder = self._network.decoder

        def enter(patch: Patch, index: int) -> Tensor:
            return valid(self._network.post_quant_conv, self._unscaled(patch.values.to(self.dtype)))

        tiles = latents.map(enter, channels=latents.channels, dtype=self.dtype)
        tiles = _middle(decoder.mid_block, convolve(tiles, decoder.conv_in))
        for block in decoder.up_blocks:
            tiles = self._up(block, tiles)
        before = _activated(decoder.norm_out, decoder.nonlinearity)
        reach = decoder.conv_out.kernel_size[-1] // 2

        def leave(patch: Patch, index: int) -> Tensor:
            return to_pixels(valid(decoder.conv_out, patch.padded(before(patch.values)))[:, :3])

        return tiles.map(leave, channels=3, reach=reach, dtype=torch.float32)

    @torch.no_grad()
    def encode_tiles(self, pixels: Tiles) -> Tiles:
        """See `LayeredAutoencoder.encode_tiles`."""
        encoder = self._network.encoder
        tiles = self._tiles_from_pixels(pixels)
        tiles = convolve(tiles, encoder.conv_in)
        for layer in encoder.down_blocks:
            tiles = self._down(layer, tiles)
        tiles = _middle(encoder.mid_block, tiles)
        tiles = convolve(tiles, encoder.conv_out, _activated(encoder.norm_out, encoder.nonlinearity))

        def leave(patch: Patch, index: int) -> Tensor:
            moments = valid(self._network.quant_conv, patch.values)
            return self._scaled(moments.chunk(2, dim=1)[0].float())

        return tiles.map(leave, channels=tiles.channels // 2, dtype=torch.float32)

    def _up(self, block: Any, tiles: Tiles) -> Tiles:
        """A level of the decoder. Frees `tiles`."""
        for each in block.resnets:
            tiles = resnet(each, tiles)
        for upsampler in getattr(block, "upsamplers", None) or ():
            tiles = upsample(tiles, upsampler.resample[1])
        return tiles

    def _down(self, layer: Any, tiles: Tiles) -> Tiles:
        """A layer of the encoder. Frees `tiles`."""
        if hasattr(layer, "conv1"):
            return resnet(layer, tiles)
        if hasattr(layer, "to_qkv"):
            return _attention(layer, tiles)
        return downsample(tiles, layer.resample[1])

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, deviation = self._moments(latents)
        return latents * deviation + mean

    def _scaled(self, latents: Tensor) -> Tensor:
        mean, deviation = self._moments(latents)
        return (latents - mean) / deviation

    def _moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        moments = channel_moments(self._network.config, latents)
        assert moments is not None, "the class has default moments"
        return moments


def _middle(block: Any, tiles: Tiles) -> Tiles:
    tiles = resnet(block.resnets[0], tiles)
    for attention, after in zip(block.attentions, block.resnets[1:], strict=True):
        tiles = resnet(after, _attention(attention, tiles))
    return tiles


def resnet(block: Any, tiles: Tiles, keep: bool = False) -> Tiles:
    """A residual block. Frees `tiles` unless `keep`."""
    has_shortcut = hasattr(block.conv_shortcut, "weight")
    hidden = convolve(tiles, block.conv1, _activated(block.norm1, block.nonlinearity), keep=True)

    def add(values: Tensor, index: int) -> Tensor:
        tile = tiles.read(index) if keep else tiles.take(index)
        return values + (valid(block.conv_shortcut, tile) if has_shortcut else tile)

    return convolve(hidden, block.conv2, _activated(block.norm2, block.nonlinearity), add)


def _attention(block: Any, tiles: Tiles) -> Tiles:
    def project(tile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = block.to_qkv(block.norm(tile)).flatten(2)[0].T.chunk(3, dim=1)
        return queries, keys, values

    def finish(attended: Tensor, tile: Tensor) -> Tensor:
        projected: Tensor = block.proj(attended.T.reshape(tile.shape))
        return projected + tile

    return attend(tiles, project, finish)


def _activated(norm: Any, nonlinearity: Pointwise = same) -> Pointwise:
    """A norm of each pixel's channels, which expects a frame axis, and the activation after it."""
    return lambda values: nonlinearity(norm(values[:, :, None])[:, :, 0])
