"""`AutoencoderDC`, the deep compression autoencoder of Sana: 32 pixels per latent."""

from __future__ import annotations

import torch
from torch import Tensor

from render.models.autoencoders.dc_layers import decode_layers, encode_layers
from render.models.autoencoders.network import LayeredNetwork, to_pixels
from render.models.autoencoders.tiles import Tiles


class DeepCompression(LayeredNetwork):
    """Scaled by `scaling_factor`; it has no distribution of latents."""

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder.encode`; undivided."""
        return self._scaled(self._network.encode(self._from_pixels(pixels), return_dict=False)[0].float())

    @torch.no_grad()
    def decode_tiles(self, latents: Tiles) -> Tiles:
        """See `LayeredAutoencoder.decode_tiles`."""
        tiles = latents.map(
            lambda patch, index: self._unscaled(patch.values.to(self.dtype)),
            channels=latents.channels,
            dtype=self.dtype,
        )
        tiles = decode_layers(self._network.decoder, tiles)
        return tiles.map(lambda patch, index: to_pixels(patch.values), channels=3, dtype=torch.float32)

    @torch.no_grad()
    def encode_tiles(self, pixels: Tiles) -> Tiles:
        """See `LayeredAutoencoder.encode_tiles`."""
        tiles = self._tiles_from_pixels(pixels)
        tiles = encode_layers(self._network.encoder, tiles)
        return tiles.map(
            lambda patch, index: self._scaled(patch.values.float()),
            channels=tiles.channels,
            dtype=torch.float32,
        )

    def _unscaled(self, latents: Tensor) -> Tensor:
        return latents / self._network.config.scaling_factor

    def _scaled(self, latents: Tensor) -> Tensor:
        return latents * float(self._network.config.scaling_factor)
