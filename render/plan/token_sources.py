"""Who speaks to all: windows whose pooled tokens every other window of their layer listens to.

All windows of a small grid speak. Of a large one, a lattice of `MOST_PER_SIDE` windows to a side does, each
for its neighbourhood: what is said and heard stays small however large the picture is. The speakers come
from the spec's geometry, never from the ranks. Pure integers.
"""

from __future__ import annotations

from functools import lru_cache

from render.plan.tiling import Tiling, Window

MOST_PER_SIDE = 6
"""Speakers along one direction of a layer; 36 of them and both passes are some kilobytes per rank."""
TokenSource = tuple[Window, int]
"""(window, pass): what one row of a model call says."""


@lru_cache(maxsize=64)
def token_sources(tiling: Tiling) -> tuple[tuple[TokenSource, ...], ...]:
    """Per layer, all voices, window by window and pass by pass; none where a layer is a single window."""
    return tuple(
        tuple(
            ((number, row, col), turn)
            for row in _lattice(layer.grid.rows.count)
            for col in _lattice(layer.grid.cols.count)
            for turn in range(tiling.passes)
        )
        if layer.grid.windows > 1
        else ()
        for number, layer in enumerate(tiling.layers)
    )


@lru_cache(maxsize=64)
def token_sources_by_rank(tiling: Tiling) -> tuple[tuple[TokenSource, ...], ...]:
    """Per rank, its voices in the order of its evaluations: the layout of its message."""
    speaking = {voice for layer in token_sources(tiling) for voice in layer}
    return tuple(
        tuple(voice for voice in tiling.evaluations_of(rank) if voice in speaking)
        for rank in range(tiling.world_size)
    )


def max_sources_per_rank(tiling: Tiling) -> int:
    """Voices of the rank that has the most; every message is padded to it."""
    return max(len(own) for own in token_sources_by_rank(tiling))


def _lattice(count: int) -> tuple[int, ...]:
    """Which of `count` rows (or columns) speak: all, or evenly spread ones."""
    if count <= MOST_PER_SIDE:
        return tuple(range(count))
    return tuple((2 * number + 1) * count // (2 * MOST_PER_SIDE) for number in range(MOST_PER_SIDE))
