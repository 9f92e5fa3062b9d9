"""The autoencoder protocol: pixels from the canvas's latents, and back. All tensors are NCHW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Autoencoder(Protocol):
    """A loaded autoencoder. `s` below is its pixels per latent of the canvas; `C` the canvas's channels.

    The canvas's latents are in the loop's scale, with whatever the model's pipeline applies to them: scaling
    factor and shift, means and deviations per channel, batch-norm statistics, patches folded into channels.
    """

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] latents in the loop's scale -> [B, 3, s h, s w] pixels in [0, 1], float32, clamped."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, s h, s w] pixels in [0, 1] -> [B, C, h, w] latents in the loop's scale, float32.

        Of a distribution of latents its mode.
        """
        ...
