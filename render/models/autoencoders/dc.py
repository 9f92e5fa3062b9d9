"""`AutoencoderDC`, the deep compression autoencoder of Sana: 32 pixels per latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from render.models.autoencoders.dc_layers import decode_layers, encode_layers
from render.models.autoencoders.kl import to_pixels
from render.models.autoencoders.tiles import Tiles


class DeepCompression:
    """Scaled by `scaling_factor`; it has no distribution of latents."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network, self._device = network, device

    @property
    def dtype(self) -> torch.dtype:
        """See `LayeredAutoencoder.dtype`."""
        return self._network.dtype

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.decode`; undivided."""
        latents = self._unscaled(latents.to(self._device, self.dtype))
        pixels: Tensor = self._network.decode(latents, return_dict=False)[0]
        return to_pixels(pixels)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder.encode`; undivided."""
        pixels = pixels.to(self._device, self.dtype) * 2.0 - 1.0
        return self._scaled(self._network.encode(pixels, return_dict=False)[0].float())

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
        tiles = pixels.map(
            lambda patch, index: patch.values.to(self.dtype) * 2.0 - 1.0, channels=3, dtype=self.dtype
        )
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
