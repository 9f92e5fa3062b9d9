"""`AutoencoderKL` of Stable Diffusion 1, 2, XL and 3, Flux.1, Z-Image and others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class KL:
    """Scaled by `scaling_factor`; moved by `shift_factor` or by means and deviations per channel where the
    configuration gives them."""

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
        encoded = self._network.encode(pixels.to(self._device, self._network.dtype) * 2.0 - 1.0)
        return self._scaled(encoded.latent_dist.mode().float())

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Latents in the loop's scale -> the network's."""
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


def channel_moments(config: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Per-channel (mean, deviation) of an autoencoder's latents, where its configuration gives them."""
    mean, deviation = (config.get(key) for key in ("latents_mean", "latents_std"))
    if mean is None or deviation is None:
        return None
    column = (1, -1, 1, 1)
    return latents.new_tensor(mean).view(column), latents.new_tensor(deviation).view(column)
