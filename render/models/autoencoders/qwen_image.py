"""`AutoencoderKLQwenImage`: a video autoencoder, used for one frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from render.models.autoencoders.kl import channel_moments


class QwenImage:
    """Standardized by means and deviations per channel; the network's frame axis has length one."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network, self._device = network, device

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.decode`; undivided."""
        latents = self._unscaled(latents.to(self._device, self._network.dtype))
        pixels: Tensor = self._network.decode(latents[:, :, None], return_dict=False)[0][:, :, 0].float()
        return (pixels * 0.5 + 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder.encode`; undivided."""
        frames = pixels.to(self._device, self._network.dtype)[:, :, None] * 2.0 - 1.0
        return self._scaled(self._network.encode(frames).latent_dist.mode()[:, :, 0].float())

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
