"""Records of finished blocks, so that a render that goes on does not decode and upload them again.

A record is stored after the block's tiles and holds what else was learned of the block. It goes when the
manifest is there.
"""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from render.numerics import same_numerics
from render.plan.decode_layout import DecodeLayout
from render.plan.geometry import Rect
from render.sink import WORK, Sink

_AT_ONCE = 8
Tiles = dict[str, dict[str, Any]]
"""Key -> {sha256, bytes}."""


@dataclass(frozen=True)
class BlockJournal:
    """The records of one image, in its sink; `identity` says whose they are, as a checkpoint's does."""

    sink: Sink
    identity: str

    def keep(self, block: Rect, tiles: Tiles, learned: bytes) -> None:
        """Store a record; the block's tiles are in the sink already."""
        header = json.dumps({"identity": self.identity, "tiles": tiles}).encode()
        data = zlib.compress(len(header).to_bytes(8, "big") + header + learned, 1)
        self.sink.put(_key(block), data, "application/octet-stream")

    def find(self, block: Rect) -> tuple[Tiles, bytes] | None:
        """The block's tiles and what was learned; None unless the record is sound and all tiles are there."""
        if self.sink.size(_key(block)) is None:
            return None
        try:
            data = zlib.decompress(self.sink.get(_key(block)))
            length = int.from_bytes(data[:8], "big")
            header = json.loads(data[8 : 8 + length])
        except (zlib.error, ValueError):
            return None
        if not same_numerics(header["identity"], self.identity):
            return None
        tiles: Tiles = header["tiles"]
        # Beside each other: a store may be far away, and a block has dozens of tiles.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            sizes = dict(zip(tiles, pool.map(self.sink.size, tiles), strict=True))
        if any(sizes[key] != tile["bytes"] for key, tile in tiles.items()):
            return None
        return tiles, data[8 + length :]


def delete_journal(sink: Sink, cut: DecodeLayout) -> None:
    """Delete all records of an image."""
    for block in cut.blocks:
        sink.delete(_key(block))


def _key(block: Rect) -> str:
    return f"{WORK}block-{block.y}-{block.x}"
