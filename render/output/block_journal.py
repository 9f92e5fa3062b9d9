"""Journal of finished blocks, so that a resumed render neither decodes nor uploads them again.

An entry is stored after the block's tiles and also holds what was measured in the block. The journal is
deleted when the manifest is stored.
"""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from render.numerics import same_numerics
from render.output.tile_entry import Tiles, tiles_from_json, tiles_to_json
from render.plan.decode_layout import DecodeLayout
from render.plan.geometry import Rect
from render.sink import WORK, Sink

_CONCURRENT_READS = 8


@dataclass(frozen=True)
class BlockJournal:
    """The journal of one image, in its sink.

    `identity` names the image and the numerics that it is rendered with, as in a checkpoint. Entries of
    another identity are ignored.
    """

    sink: Sink
    identity: str

    def save(self, block: Rect, tiles: Tiles, measurements: bytes) -> None:
        """Store the entry of a block whose tiles are in the sink already."""
        header = json.dumps({"identity": self.identity, "tiles": tiles_to_json(tiles)}).encode()
        data = zlib.compress(len(header).to_bytes(8, "big") + header + measurements, 1)
        self.sink.put(_key(block), data, "application/octet-stream")

    def load(self, block: Rect) -> tuple[Tiles, bytes] | None:
        """The block's tiles and measurements; None unless the entry is sound and all tiles are stored."""
        if self.sink.size(_key(block)) is None:
            return None
        try:
            data = zlib.decompress(self.sink.get(_key(block)))
            length = int.from_bytes(data[:8], "big")
            header = json.loads(data[8 : 8 + length])
            if not same_numerics(header["identity"], self.identity):
                return None
            tiles = tiles_from_json(header["tiles"])
        except (zlib.error, ValueError, KeyError, TypeError, AttributeError):
            return None
        # Concurrently: a store may be far away, and a block has dozens of tiles.
        with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
            sizes = dict(zip(tiles, pool.map(self.sink.size, tiles), strict=True))
        if any(sizes[key] != tile.bytes for key, tile in tiles.items()):
            return None
        return tiles, data[8 + length :]

    def delete(self, layout: DecodeLayout) -> None:
        """Delete all entries of the image."""
        for block in layout.blocks:
            self.sink.delete(_key(block))


def _key(block: Rect) -> str:
    return f"{WORK}block-{block.y}-{block.x}"
