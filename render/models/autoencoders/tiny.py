"""`AutoencoderTiny`: the built-in model's, and the TAESD and TAEF1 replacements of larger ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from render.models.autoencoders.streaming import can_stream, run_streaming

_STRIP = 512
"""Latents that the autoencoder takes at a time where it runs in strips, in whole rows: few enough that a wide
tile wants no more memory than a narrow one."""


class Tiny:
    """No norms and no attention: a pixel depends on the few latents around it alone, so a piece of the canvas
    with that halo is decoded exactly."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network, self._device = network, device
        # On a CPU, where memory and caches are small. A GPU is faster with one large call.
        self._in_strips = (
            device.type == "cpu" and can_stream(network.encoder.layers) and can_stream(network.decoder.layers)
        )
        self._shift = float(network.config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        latents = latents.to(self._device, self._network.dtype) / self._network.config.scaling_factor
        if self._shift:
            latents = latents + self._shift
        if self._in_strips:
            # The two lines around the layers are diffusers' `DecoderTiny.forward`, which means [0, 1] by it.
            latents = torch.tanh(latents / 3) * 3
            rows = _strip_rows(latents.shape[3])
            return run_streaming(self._network.decoder.layers, latents, rows).float().clamp_(0.0, 1.0)
        pixels: Tensor = self._network.decode(latents, return_dict=False)[0].float()
        return (pixels * 0.5 + 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder.encode`."""
        pixels = pixels.to(self._device, self._network.dtype)
        if self._in_strips:
            scale = 2 ** (len(self._network.config.num_encoder_blocks) - 1)
            rows = _strip_rows(pixels.shape[3] // scale) * scale
            latents = run_streaming(self._network.encoder.layers, pixels, rows).float()
        else:
            latents = self._network.encode(pixels * 2.0 - 1.0).latents.float()
        return (latents - self._shift) * float(self._network.config.scaling_factor)


def _strip_rows(width: int) -> int:
    return max(1, _STRIP // width)
