"""What the autoencoders that are run layer by layer share: a network of diffusers and its scale of pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from render.models.autoencoders.tiles import Tiles


class LayeredNetwork:
    """A loaded network of diffusers. A subclass says how the canvas's latents are scaled."""

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

    def _unscaled(self, latents: Tensor) -> Tensor:
        """Latents in the loop's scale -> the network's."""
        raise NotImplementedError

    def _from_pixels(self, pixels: Tensor) -> Tensor:
        """[0, 1] -> the network's [-1, 1], in its dtype and on its device."""
        return pixels.to(self._device, self.dtype) * 2.0 - 1.0

    def _tiles_from_pixels(self, pixels: Tiles) -> Tiles:
        return pixels.map(
            lambda patch, index: patch.values.to(self.dtype) * 2.0 - 1.0, channels=3, dtype=self.dtype
        )


def to_pixels(values: Tensor) -> Tensor:
    """A network's [-1, 1] -> [0, 1], float32, clamped."""
    return (values.float() * 0.5 + 0.5).clamp(0.0, 1.0)


def channel_moments(config: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Per-channel (mean, deviation) of an autoencoder's latents, where its configuration gives them."""
    mean, deviation = (config.get(key) for key in ("latents_mean", "latents_std"))
    if mean is None or deviation is None:
        return None
    column = (1, -1, 1, 1)
    return latents.new_tensor(mean).view(column), latents.new_tensor(deviation).view(column)
