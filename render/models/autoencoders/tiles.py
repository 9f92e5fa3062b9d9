"""An activation of the whole canvas, cut into tiles over all ranks, and the passes that make one of another.

A network is run layer by layer over all tiles, so each layer may look at the whole canvas: a norm at the
statistics of all tiles, an attention at all keys. Every layer is run on one tile at a time, at a shape that
the spec lays down; between ranks cross only bits (strips beside a tile, statistics of each tile), and sums of
statistics are taken in the order of the tiles. So any number of ranks gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from render.distributed import Group
from render.models.autoencoders.tile_store import Kept, TileStore
from render.plan.geometry import Rect
from render.plan.tile_grid import Margins, Strip, TileGrid

_CHUNK_BYTES = 1 << 25
"""What a rank receives of all others at a time."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A tile and its margin, [1, C, h, w]; where the canvas ends, the margin is narrower than the reach."""

    values: Tensor
    margins: Margins
    reach: int

    def padded(self, values: Tensor) -> Tensor:
        """Zeros in place of what is missing of the margin."""
        top, left, bottom, right = (self.reach - margin for margin in self.margins)
        missing = (left, right, top, bottom)
        return functional.pad(values, missing) if any(missing) else values

    def center(self, values: Tensor, scale: int = 1) -> Tensor:
        """Without the margin, which is `scale` times as wide in `values`."""
        top, left, bottom, right = (margin * scale for margin in self.margins)
        height, width = values.shape[-2:]
        return values[..., top : height - bottom, left : width - right]


@dataclass(frozen=True, kw_only=True)
class TilePass:
    """What the tiles of one run of a network share. All ranks of the group must run the same layers."""

    grid: TileGrid
    group: Group
    store: TileStore
    dtype: torch.dtype
    """Of the network's activations."""

    @property
    def device(self) -> torch.device:
        return self.store.device

    @property
    def own(self) -> tuple[int, ...]:
        """The numbers of this rank's tiles."""
        return self.grid.owned_by(self.group.rank)

    def make(
        self,
        function: Callable[[int], Tensor],
        channels: int,
        scale: int = 1,
        dtype: torch.dtype | None = None,
    ) -> Tiles:
        """Tiles of [1, channels, h, w] from a function of a tile's number, called for this rank's."""
        made = Tiles(self, channels, scale, dtype or self.dtype)
        for index in self.own:
            made.put(index, function(index))
        return made

    def empty_like(self, tiles: Tiles) -> Tiles:
        """Tiles of the same channels, scale and type, none of which is set."""
        return Tiles(self, tiles.channels, tiles.scale, tiles.dtype)

    def gather_values(self, values: dict[int, Tensor], count: int) -> Tensor:
        """[tiles, count] float64 on the host, from this rank's [count] of each of its tiles."""
        grid, world = self.grid, self.group.world_size
        longest = max(len(grid.owned_by(rank)) for rank in range(world))
        message = torch.zeros((longest, count), dtype=torch.float64, device=self.device)
        for at, index in enumerate(self.own):
            message[at] = values[index]
        received = self.group.all_gather(message).wait().cpu()
        gathered = torch.empty((len(grid.tiles), count), dtype=torch.float64)
        for rank in range(world):
            numbers = list(grid.owned_by(rank))
            gathered[numbers] = received[rank, : len(numbers)]
        return gathered

    def total(self, values: dict[int, Tensor], count: int) -> Tensor:
        """[count] float64 on the host: the sum over all tiles, added in their order."""
        total = torch.zeros(count, dtype=torch.float64)
        for row in self.gather_values(values, count):
            total += row
        return total


class Tiles:
    """[1, C, height * scale, width * scale] of a canvas of height x width latents; a rank has its tiles."""

    def __init__(self, run: TilePass, channels: int, scale: int, dtype: torch.dtype) -> None:
        self.run, self.channels, self.scale, self.dtype = run, channels, scale, dtype
        self._kept: dict[int, Kept] = {}
        self._strips: dict[Strip, Tensor] = {}
        """Of this rank's tiles, one value wide."""

    def put(self, index: int, values: Tensor) -> None:
        """Set one of this rank's tiles, [1, C, h, w]."""
        assert values.dtype == self.dtype and values.shape[1] == self.channels, "as declared"
        self._kept[index] = self.run.store.keep(values)
        self._cut(index, values, 1, self._strips)

    def read(self, index: int) -> Tensor:
        """One of this rank's tiles."""
        return self._kept[index].read()

    def take(self, index: int) -> Tensor:
        """Read a tile for the last time."""
        values = self.read(index)
        self.drop(index)
        return values

    def drop(self, index: int) -> None:
        """Free a tile."""
        self._kept.pop(index).drop()

    def drop_all(self) -> None:
        """Free all tiles and strips."""
        for index in tuple(self._kept):
            self.drop(index)
        self._strips.clear()

    def map(
        self,
        function: Callable[[Patch, int], Tensor],
        *,
        channels: int,
        reach: int = 0,
        scale: int | None = None,
        dtype: torch.dtype | None = None,
        keep: bool = False,
    ) -> Tiles:
        """New tiles, each from the patch of an old one and its number; frees the old ones unless `keep`."""
        made = Tiles(self.run, channels, scale or self.scale, dtype or self.dtype)
        for index, patch in self.patches(reach):
            made.put(index, function(patch, index))
            if not keep:
                self.drop(index)
        if not keep:
            self._strips.clear()
        return made

    def patches(self, reach: int) -> Iterator[tuple[int, Patch]]:
        """This rank's tiles with a margin of `reach` values. All ranks must call it."""
        grid = self.run.grid
        strips = self._gathered_strips(reach) if reach else {}
        for index in self.run.own:
            values = self.read(index)
            if reach:
                pieces = grid.pieces(index, self.scale, reach)
                height, width = (max(piece.there[side].stop for piece in pieces) for side in (0, 1))
                whole = values.new_empty((*values.shape[:2], height, width))
                for piece in pieces:
                    source = values if piece.strip is None else strips[piece.strip]
                    whole[..., *piece.there] = source[..., *piece.here]
                values = whole
            yield index, Patch(values=values, margins=grid.margins(index, self.scale, reach), reach=reach)

    def gather(self, area: Rect) -> Tensor:
        """[1, C, area.height * scale, area.width * scale] on the host. All ranks must call it.

        Their areas may differ; they are in latents, and hold no latent twice.
        """
        grid, scale = self.run.grid, self.scale
        gathered = torch.empty((1, self.channels, area.height * scale, area.width * scale), dtype=self.dtype)
        for index, values in self.rounds():
            for there, here in grid.canvas.intersect(area, grid.tiles[index]):
                rows, cols = (slice(each.start * scale, each.stop * scale) for each in there)
                own_rows, own_cols = (slice(each.start * scale, each.stop * scale) for each in here)
                gathered[..., rows, cols] = values[..., own_rows, own_cols].to(gathered.device)
        return gathered

    def rounds(self) -> Iterator[tuple[int, Tensor]]:
        """All tiles of all ranks, one of each rank in a round. All ranks must call it."""
        grid, group = self.run.grid, self.run.group
        owned = [grid.owned_by(rank) for rank in range(group.world_size)]
        largest = max(tile.area for tile in grid.tiles) * self.scale**2 * self.channels
        for number in range(max(map(len, owned))):
            message = torch.zeros(largest, dtype=self.dtype, device=self.run.device)
            if number < len(owned[group.rank]):
                values = self.read(owned[group.rank][number]).flatten()
                message[: len(values)] = values
            received = group.all_gather(message.view(torch.uint8)).wait().view(self.dtype)
            for rank, numbers in enumerate(owned):
                if number < len(numbers):
                    tile = grid.tiles[numbers[number]]
                    shape = 1, self.channels, tile.height * self.scale, tile.width * self.scale
                    length = self.channels * tile.area * self.scale**2
                    yield numbers[number], received[rank, :length].view(shape)

    def _cut(self, index: int, values: Tensor, reach: int, into: dict[Strip, Tensor]) -> None:
        """Copy the strips of a tile that any rank reads."""
        grid, rank = self.run.grid, self.run.group.rank
        wanted = grid.read_strips(rank, self.scale, reach)
        sent = grid.sent_strips(rank, self.scale, reach)
        height, width = values.shape[-2:]
        cuts = {
            "top": values[..., : min(reach, height), :],
            "bottom": values[..., height - min(reach, height) :, :],
            "left": values[..., : min(reach, width)],
            "right": values[..., width - min(reach, width) :],
        }
        for side, cut in cuts.items():
            strip: Strip = (index, side)  # type: ignore[assignment]
            if strip in wanted or strip in sent:
                into[strip] = cut.clone()

    def _gathered_strips(self, reach: int) -> dict[Strip, Tensor]:
        """All strips that this rank's patches are made of, other ranks' included."""
        strips = dict(self._strips) if reach == 1 else {}
        if reach != 1:
            for index in self.run.own:
                self._cut(index, self.read(index), reach, strips)
        return strips | self._received_strips(strips, reach)

    def _received_strips(self, own: dict[Strip, Tensor], reach: int) -> dict[Strip, Tensor]:
        """The strips that this rank reads of other ranks' tiles; gathered in chunks, as bytes."""
        grid, group, size = self.run.grid, self.run.group, self.dtype.itemsize
        places: dict[Strip, tuple[int, int, int]] = {}  # rank, first and last byte of its message
        lengths = [0] * group.world_size
        for rank in range(group.world_size):
            for strip in grid.sent_strips(rank, self.scale, reach):
                height, width = grid.strip_shape(strip, self.scale, reach)
                end = lengths[rank] + self.channels * height * width * size
                places[strip] = rank, lengths[rank], end
                lengths[rank] = end
        longest = max(lengths)
        message = torch.zeros(longest, dtype=torch.uint8, device=self.run.device)
        for strip in grid.sent_strips(group.rank, self.scale, reach):
            _, first, last = places[strip]
            message[first:last] = own[strip].flatten().view(torch.uint8)
        wanted = {
            strip: torch.empty(places[strip][2] - places[strip][1], dtype=torch.uint8, device=self.run.device)
            for strip in grid.read_strips(group.rank, self.scale, reach)
            if grid.owners[strip[0]] != group.rank
        }
        chunk = max(1, _CHUNK_BYTES // group.world_size)
        for start in range(0, longest, chunk):
            received = group.all_gather(message[start : start + chunk]).wait()
            for strip, data in wanted.items():
                rank, first, last = places[strip]
                low, high = max(first, start), min(last, start + chunk)
                if low < high:
                    data[low - first : high - first] = received[rank, low - start : high - start]
        return {
            strip: data.view(self.dtype).view(1, self.channels, *grid.strip_shape(strip, self.scale, reach))
            for strip, data in wanted.items()
        }
