"""`AutoencoderKL` of Stable Diffusion 1, 2, XL and 3, Flux.1, Z-Image and others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from render.models.autoencoders.kl_layers import decode_layers, encode_layers
from render.models.autoencoders.network import LayeredNetwork, channel_moments, to_pixels
from render.models.autoencoders.tiles import Tiles


class KL(LayeredNetwork):
    """Scaled by `scaling_factor`; moved by `shift_factor` or by means and deviations per channel where the
    configuration gives them."""

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder.encode`; undivided."""
        encoded = self._network.encode(self._from_pixels(pixels))
        return self._scaled(encoded.latent_dist.mode().float())

    @torch.no_grad()
    def decode_tiles(self, latents: Tiles) -> Tiles:
        """See `LayeredAutoencoder.decode_tiles`."""
        network, patch = self._network, self._patch

        def enter(patch: Any, index: int) -> Tensor:
            values = self._unscaled(patch.values.to(self.dtype))
            return values if network.post_quant_conv is None else network.post_quant_conv(values)

        channels = latents.channels // patch**2
        tiles = latents.map(enter, channels=channels, scale=latents.scale * patch, dtype=self.dtype)
        return decode_layers(network.decoder, tiles, lambda values, index: to_pixels(values))

    @torch.no_grad()
    def encode_tiles(self, pixels: Tiles) -> Tiles:
        """See `LayeredAutoencoder.encode_tiles`."""
        network, patch = self._network, self._patch
        entered = self._tiles_from_pixels(pixels)
        moments = encode_layers(network.encoder, entered)

        def leave(patch: Any, index: int) -> Tensor:
            values = patch.values if network.quant_conv is None else network.quant_conv(patch.values)
            return self._scaled(values.chunk(2, dim=1)[0].float())

        channels = moments.channels // 2 * patch**2
        return moments.map(leave, channels=channels, scale=moments.scale // patch, dtype=torch.float32)

    @property
    def _patch(self) -> int:
        """The network's latents per latent of the canvas, in each direction."""
        return 1

    def _unscaled(self, latents: Tensor) -> Tensor:
        config = self._network.config
        moments = channel_moments(config, latents)
        if moments is None:
            return latents / config.scaling_factor + float(config.get("shift_factor") or 0.0)
        return latents * moments[1] / config.scaling_factor + moments[0]

    def _scaled(self, latents: Tensor) -> Tensor:
        config = self._network.config
        moments = channel_moments(config, latents)
        if moments is None:
            latents = latents - float(config.get("shift_factor") or 0.0)
        else:
            latents = (latents - moments[0]) / moments[1]
        return latents * float(config.scaling_factor)
