"""Token sources: the evaluations whose pooled tokens all other windows of their layer attend to.

All windows of a small grid are sources. Of a large grid, a lattice of `MAX_PER_SIDE` windows per side is,
each for its neighbourhood, so the number of tokens stays small whatever the size of the image. The sources
follow from the spec's geometry, never from the ranks. Pure integers, no torch.
"""

from __future__ import annotations

from functools import lru_cache

from render.plan.tiling import Tiling, Window

MAX_PER_SIDE = 6
"""Sources along one direction of a layer; 36 of them under two conditions are some kilobytes per rank."""
TokenSource = tuple[Window, int]
"""(window, condition index): the evaluation that one pooled token comes from."""


@lru_cache(maxsize=64)
def token_sources(tiling: Tiling) -> tuple[tuple[TokenSource, ...], ...]:
    """All sources of each layer, window by window and condition by condition. Empty for a layer of one
    window."""
    return tuple(
        tuple(
            ((number, row, col), condition)
            for row in _lattice(layer.grid.rows.count)
            for col in _lattice(layer.grid.cols.count)
            for condition in range(tiling.passes)
        )
        if layer.grid.windows > 1
        else ()
        for number, layer in enumerate(tiling.layers)
    )


@lru_cache(maxsize=64)
def token_sources_by_rank(tiling: Tiling) -> tuple[tuple[TokenSource, ...], ...]:
    """The sources of each rank in the order of its evaluations: the layout of its message."""
    sources = {source for layer in token_sources(tiling) for source in layer}
    return tuple(
        tuple(evaluation for evaluation in tiling.evaluations_of(rank) if evaluation in sources)
        for rank in range(tiling.world_size)
    )


def max_sources_per_rank(tiling: Tiling) -> int:
    """Number of sources of the rank that has the most; every rank's message is padded to it."""
    return max(len(own) for own in token_sources_by_rank(tiling))


def _lattice(count: int) -> tuple[int, ...]:
    """Which of `count` rows (or columns) are sources: all of them, or `MAX_PER_SIDE` evenly spread ones."""
    if count <= MAX_PER_SIDE:
        return tuple(range(count))
    return tuple((2 * number + 1) * count // (2 * MAX_PER_SIDE) for number in range(MAX_PER_SIDE))
