"""`AutoencoderDC`, the deep compression autoencoder of Sana: 32 pixels per latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DeepCompression:
    """Scaled by `scaling_factor`; it has no distribution of latents."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network, self._device = network, device

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.decode`; undivided."""
        latents = self._unscaled(latents.to(self._device, self._network.dtype))
        pixels: Tensor = self._network.decode(latents, return_dict=False)[0].float()
        return (pixels * 0.5 + 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder.encode`; undivided."""
        pixels = pixels.to(self._device, self._network.dtype) * 2.0 - 1.0
        return self._scaled(self._network.encode(pixels, return_dict=False)[0].float())

    def _unscaled(self, latents: Tensor) -> Tensor:
        return latents / self._network.config.scaling_factor

    def _scaled(self, latents: Tensor) -> Tensor:
        return latents * float(self._network.config.scaling_factor)
