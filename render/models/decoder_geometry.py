"""An autoencoder's geometry from its configuration: pixels per latent and the decode halo. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from render.models.config_files import unusable, whole_number

KL_HALO = 18
"""Latents around a decode tile of an `AutoencoderKL`. The convolutions of its four levels reach 18 latents;
its group norms and its one attention see the whole tile, so a tiled decode is close, never exact."""


def decoder_geometry(path: Path, class_name: str, vae: dict[str, Any]) -> tuple[int, int]:
    """(pixels per latent, decode halo in latents) of the autoencoder of a folder.

    Raises `ModelNotUsable` for a configuration that is not understood.
    """
    if class_name == "AutoencoderTiny":
        blocks = tuple(vae.get("num_decoder_blocks", (3, 3, 3, 1)))
        factor = whole_number(path, vae, "vae", "upsampling_scaling_factor", 2)
        smooth = vae.get("upsample_fn", "nearest") != "nearest"
        if factor != 2 or not blocks or not all(isinstance(count, int) for count in blocks):
            raise unusable(path, "has a vae whose decoder does not double at each level; use another model")
        return 2 ** (len(blocks) - 1), tiny_decoder_halo(blocks, smooth)
    levels = vae.get("block_out_channels")
    if not isinstance(levels, list) or not levels:
        raise unusable(path, "has no block_out_channels in vae/config.json; download the model again")
    return 2 ** (len(levels) - 1), KL_HALO


def tiny_decoder_halo(blocks: tuple[int, ...], smooth: bool = False) -> int:
    """How many latents beside its own an `AutoencoderTiny`'s pixel depends on, in each direction.

    `blocks` is the number of residual blocks at each level. The reach is traced back from the leftmost pixel
    of a latent: each 3x3 convolution reaches one further (three to a block), each doubling halves the
    distance, rounded outwards (`smooth`: an interpolating doubling reads one more neighbor). The decoder has
    no norms and no attention, so the reach is finite and exact.
    """
    reach = 1 + 3 * blocks[-1]
    for count in reversed(blocks[:-1]):
        reach = -(-(reach + 1) // 2) + (1 if smooth else 0)
        reach += 3 * count
    return reach + 1
