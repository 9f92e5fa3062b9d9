"""Records of finished blocks, so that a render that goes on does not decode and upload them again.

A record is stored after the block's tiles and holds what else was learned of the block. It goes when the
manifest is there.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

from render.picture.blocks import Cut
from render.plan.geometry import Rect
from render.sink import Sink

Tiles = dict[str, dict[str, Any]]
"""Key -> {sha256, bytes}."""


@dataclass(frozen=True)
class Records:
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
        if header["identity"] != self.identity:
            return None
        if any(self.sink.size(key) != tile["bytes"] for key, tile in header["tiles"].items()):
            return None
        return header["tiles"], data[8 + length :]


def forget_records(sink: Sink, cut: Cut) -> None:
    """Delete all records of an image."""
    for block in cut.blocks:
        sink.delete(_key(block))


def _key(block: Rect) -> str:
    return f"work/block-{block.y}-{block.x}"
