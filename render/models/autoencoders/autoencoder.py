"""The autoencoder protocol: pixels from the canvas's latents, and back. All tensors are NCHW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from render.models.autoencoders.tiles import Tiles


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


@runtime_checkable
class LayeredAutoencoder(Autoencoder, Protocol):
    """An autoencoder whose norms or attention look at the whole canvas, so that no piece of the canvas can be
    decoded alone. It is run layer by layer over the tiles of all ranks; `decode` and `encode` are undivided.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of its activations."""
        ...

    def decode_tiles(self, latents: Tiles) -> Tiles:
        """`decode` of float32 latents at scale 1; the pixels are at scale s. All ranks must call it."""
        ...

    def encode_tiles(self, pixels: Tiles) -> Tiles:
        """`encode` of float32 pixels at scale s; the latents are at scale 1. All ranks must call it."""
        ...
