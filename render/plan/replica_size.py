"""How large the copy of the canvas is that each rank of a group holds (`render.denoise.replica`)."""

from __future__ import annotations

LARGEST_REPLICA_BYTES = 64 << 20
"""A larger canvas is not sent with every step; a group that loses a rank goes on from a checkpoint then."""
_BYTES = 4
_MOST_PLANES = 4
"""The latents, one set of earlier ones, and two planes of what the stage started from."""


def replica_bytes(planes: int, channels: int, latents: int) -> int:
    """Bytes of so many planes of a canvas."""
    return _BYTES * planes * channels * latents


def largest_replica(channels: int, latents: int) -> int:
    """The most bytes that the copy of a canvas takes."""
    return replica_bytes(_MOST_PLANES, channels, latents)
