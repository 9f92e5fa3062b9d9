"""How much of the canvas an autoencoder's attention looks at: all of it, up to a size."""

from __future__ import annotations

from render.plan.tile_grid import TileGrid

WHOLE_CANVAS_TOKENS = 1 << 18
"""A token is a latent of the autoencoder. A canvas of up to this many (4096x4096 pixels at 8 pixels per
token) is attended to as a whole. The work grows with the square of the canvas; here it equals that of all
other layers of Stable Diffusion's decoder."""


def attends_to_whole(tokens: int) -> bool:
    """Whether each token of a canvas of so many attends to all of them."""
    return tokens <= WHOLE_CANVAS_TOKENS


def window_radius(side: int) -> int:
    """On a larger canvas: how many tiles of `side` x `side` tokens to each side of its own a token attends
    to."""
    radius = 0
    while (2 * (radius + 1) + 1) ** 2 * side * side <= WHOLE_CANVAS_TOKENS:
        radius += 1
    return radius


def attended_tiles(grid: TileGrid, index: int, scale: int) -> list[int]:
    """The tiles that the tokens of a tile attend to, in order. `scale` is tokens per latent."""
    canvas, side = grid.canvas, grid.side
    if attends_to_whole(canvas.height * canvas.width * scale**2):
        return list(range(len(grid.tiles)))
    radius, across, down = window_radius(side * scale), -(-canvas.width // side), -(-canvas.height // side)
    row, col = divmod(index, across)
    rows = _around(row, radius, down, canvas.wrap_y)
    cols = _around(col, radius, across, canvas.wrap_x)
    return sorted(each_row * across + each_col for each_row in rows for each_col in cols)


def _around(at: int, radius: int, count: int, wraps: bool) -> set[int]:
    numbers = range(at - radius, at + radius + 1)
    return {number % count for number in numbers} if wraps else {n for n in numbers if 0 <= n < count}
