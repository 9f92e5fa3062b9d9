"""`AutoencoderKLFlux2`: the layers of `AutoencoderKL` under batch-norm statistics and patches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from render.models.autoencoders.kl import KL


class Flux2(KL):
    """The canvas holds patches of 2x2 latents as channels, standardized by the network's running statistics
    (diffusers' `Flux2Pipeline`: `_patchify_latents`, `bn`)."""

    @property
    def _patch(self) -> int:
        return int(self._network.config.patch_size[0])

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(latents)
        return functional.pixel_shuffle(latents * deviation + mean, self._patch)

    def _scaled(self, latents: Tensor) -> Tensor:
        patches = functional.pixel_unshuffle(latents, self._patch)
        mean, deviation = self._statistics(patches)
        return (patches - mean) / deviation

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        norm, column = self._network.bn, (1, -1, 1, 1)
        deviation = torch.sqrt(norm.running_var.view(column) + self._network.config.batch_norm_eps)
        return norm.running_mean.view(column).to(latents), deviation.to(latents)
