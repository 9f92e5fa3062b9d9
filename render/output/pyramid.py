"""The Deep Zoom pyramid, written by the ranks themselves; nobody ever holds the whole picture.

Each rank decodes its blocks one after another, cuts them into tiles and halves them while whole tiles
come out. What is left of a block then (a sixteenth of its pixels or less for large pictures) is gathered,
and rank 0 makes the few top levels of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from render.canvas import LatentRegion
from render.distributed import Group
from render.models.adapter import Adapter
from render.output.block_journal import BlockJournal
from render.output.decode import decode_block
from render.output.encode import ENDINGS, Pixels, encode
from render.output.seams import Steps, add_block
from render.output.tile_writer import TileWriter
from render.plan.decode_layout import DecodeLayout, make_decode_layout, seam_lines
from render.plan.geometry import Rect
from render.plan.stages import make_stages
from render.sink import Sink
from render.spec import Spec

PREVIEW_SIDE = 1024
"""Longest side of the preview, in pixels."""

OnProgress = Callable[[int, int, int, dict[str, float]], None]
"""Called with blocks done and blocks in all of this rank, pixels that were decoded for the last one (0 where
it was known), and the rank's seconds so far, by phase."""


@dataclass(frozen=True, kw_only=True)
class PyramidReport:
    """What every rank knows of the finished pyramid."""

    cut: DecodeLayout
    tiles: dict[str, dict[str, Any]]
    """Key -> {sha256, bytes}, of all ranks, sorted."""
    columns: Steps
    rows: Steps
    """What was measured across the lines that the seam score looks at."""
    darkest: int
    brightest: int
    seconds: dict[str, float]


def publish_pyramid(
    latents: LatentRegion,
    adapter: Adapter,
    spec: Spec,
    group: Group,
    sink: Sink,
    *,
    device: torch.device,
    records: BlockJournal | None = None,
    on_progress: OnProgress = lambda done, total, pixels, seconds: None,
) -> PyramidReport:
    """Decode the rank's blocks from its piece of the finished canvas, and write all tiles of all levels.

    Blocks that `records` knows are left as they are.
    """
    cut = make_decode_layout(spec, adapter.info)
    last = make_stages(spec, adapter.info)[-1]
    columns, rows = seam_lines(cut, last, spec.seed_of(last.index), adapter.info.scale_factor)
    share = _Share(cut, Steps(columns), Steps(rows))
    with TileWriter(spec, sink, records) as writer:
        mine = cut.blocks_of(group.rank, group.world_size)
        for number, block in enumerate(mine):
            known = None if records is None else records.find(block)
            if known is not None:
                writer.tiles |= known[0]
                share.add(known[1])
            else:
                started = time.perf_counter()
                pixels = decode_block(adapter, latents, block, cut.decode_side, device)
                share.decode_seconds += time.perf_counter() - started
                learned = share.like().take(block, pixels, writer).pack()
                writer.put_record(block, learned)
                share.add(learned)
            decoded = 0 if known is not None else block.width * block.height
            on_progress(number + 1, len(mine), decoded, _seconds(share, writer))
        everything = _exchange(share, group)
        if group.rank == 0:
            _write_top(cut, everything, spec, writer)
    return _report(cut, share, everything, writer, group)


def halved(pixels: Pixels) -> Pixels:
    """One level down: 2x2 box `(a + b + c + d + 2) >> 2`, odd edges repeated, sizes rounded up."""
    height, width = pixels.shape[:2]
    even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(np.uint16)
    rows = even[0::2] + even[1::2]
    return ((rows[:, 0::2] + rows[:, 1::2] + 2) >> 2).astype(np.uint8)


@dataclass
class _Share:
    """What has been learned of some blocks: one, a rank's, or all."""

    cut: DecodeLayout
    columns: Steps
    rows: Steps
    decode_seconds: float = 0.0
    darkest: int = 255
    brightest: int = 0
    leftovers: list[tuple[int, int, Pixels]] = field(default_factory=list)
    edges: list[tuple[Rect, tuple[Pixels, Pixels, Pixels, Pixels]]] = field(default_factory=list)

    def like(self) -> _Share:
        """An empty one of the same picture."""
        return _Share(self.cut, Steps(self.columns.lines), Steps(self.rows.lines))

    def take(self, block: Rect, pixels: Pixels, writer: TileWriter) -> _Share:
        """Measure a decoded block, write its tiles, and keep what is left of it."""
        add_block(self.columns, self.rows, block, pixels)
        self.edges.append((block, (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])))
        self.darkest = min(self.darkest, int(pixels.min()))
        self.brightest = max(self.brightest, int(pixels.max()))
        for down in range(self.cut.block_levels):
            origin_col, origin_row = ((at >> down) // self.cut.tile for at in (block.x, block.y))
            writer.put_level(self.cut.top_level - down, origin_col, origin_row, pixels, self.cut.tile)
            pixels = halved(pixels)
        shift = self.cut.block_levels
        self.leftovers.append((block.y >> shift, block.x >> shift, pixels))
        return self

    def pack(self) -> bytes:
        """As bytes that `add` takes."""
        header = {
            "darkest": self.darkest,
            "brightest": self.brightest,
            "blocks": [asdict(block) for block, _ in self.edges],
            "leftovers": [(y, x, *pixels.shape[:2]) for y, x, pixels in self.leftovers],
        }
        arrays: list[NDArray[Any]] = [
            array for steps in (self.columns, self.rows) for array in (steps.absolute, steps.signed)
        ]
        arrays += [edge for _, edges in self.edges for edge in edges]
        arrays += [pixels for _, _, pixels in self.leftovers]
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "big") + text + b"".join(array.tobytes() for array in arrays)

    def add(self, data: bytes) -> None:
        """Add what was learned elsewhere, or earlier."""
        length = int.from_bytes(data[:8], "big")
        header = json.loads(data[8 : 8 + length])
        at = 8 + length

        def take(shape: tuple[int, ...], kind: Any) -> Any:
            nonlocal at
            count = int(np.prod(shape))
            array = np.frombuffer(data, kind, count, at).reshape(shape)
            at += array.nbytes
            return array

        self.darkest = min(self.darkest, header["darkest"])
        self.brightest = max(self.brightest, header["brightest"])
        for steps in (self.columns, self.rows):
            steps.merge(take(steps.absolute.shape, np.int64), take(steps.signed.shape, np.int64))
        for values in header["blocks"]:
            block = Rect(**values)
            rows = [take((block.width, 3), np.uint8) for _ in range(2)]
            cols = [take((block.height, 3), np.uint8) for _ in range(2)]
            # Copies: a view would keep all of `data` in memory.
            top, bottom, left, right = (edge.copy() for edge in rows + cols)
            self.edges.append((block, (top, bottom, left, right)))
        for y, x, height, width in header["leftovers"]:
            self.leftovers.append((y, x, take((height, width, 3), np.uint8).copy()))


def _exchange(share: _Share, group: Group) -> _Share:
    """Gather what the top levels and the measures across blocks need; bytes, not sums, cross."""
    whole = share.like()
    for data in group.all_gather_bytes(share.pack()):
        whole.add(data)
    _add_steps_between(whole)
    return whole


def _add_steps_between(whole: _Share) -> None:
    """Add the steps between the last line of one block and the first of the next."""
    by_place = {(block.y, block.x): edges for block, edges in whole.edges}
    side = whole.cut.block

    def before(start: int, length: int) -> int:
        return start - side if start else (length - 1) // side * side

    for block, (top, _, left, _) in whole.edges:
        # Line 0 is only looked at where the picture wraps: before its first block comes its last.
        above = by_place.get((before(block.y, whole.cut.height), block.x))
        beside = by_place.get((block.y, before(block.x, whole.cut.width)))
        if above is not None and block.y in whole.rows.lines.all:
            whole.rows.add(block.y, block.x, above[1], top)
        if beside is not None and block.x in whole.columns.lines.all:
            whole.columns.add(block.x, block.y, beside[3], left)


def _write_top(cut: DecodeLayout, everything: _Share, spec: Spec, writer: TileWriter) -> None:
    """The levels above the blocks' own, the preview and the Deep Zoom descriptor."""
    level = cut.top_level - cut.block_levels
    width, height = cut.size_at(level)
    pixels = np.empty((height, width, 3), np.uint8)
    for y, x, part in everything.leftovers:
        pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
    preview: Pixels | None = None
    while level >= 0:
        writer.put_level(level, 0, 0, pixels, cut.tile)
        if preview is None and max(pixels.shape[:2]) <= PREVIEW_SIDE:
            preview = pixels
        pixels, level = halved(pixels), level - 1
    parameters = json.dumps(spec.to_dict(), sort_keys=True, ensure_ascii=False)
    shown = preview if preview is not None else pixels
    writer.put_extra("preview.webp", encode(shown, "webp", 90, parameters), "image/webp")
    writer.put_extra("image.dzi", _descriptor(cut, spec).encode(), "application/xml")


def _descriptor(cut: DecodeLayout, spec: Spec) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="{ENDINGS[spec.format]}" '
        f'Overlap="0" TileSize="{cut.tile}"><Size Width="{cut.width}" Height="{cut.height}"/></Image>\n'
    )


def _report(
    cut: DecodeLayout, share: _Share, everything: _Share, writer: TileWriter, group: Group
) -> PyramidReport:
    """Gather the tiles' digests; called after the writer is closed, so all of them are stored."""
    tiles: dict[str, dict[str, Any]] = {}
    for data in group.all_gather_bytes(json.dumps(writer.tiles).encode()):
        tiles |= json.loads(data)
    return PyramidReport(
        cut=cut,
        tiles=dict(sorted(tiles.items())),
        columns=everything.columns,
        rows=everything.rows,
        darkest=everything.darkest,
        brightest=everything.brightest,
        seconds=_seconds(share, writer),
    )


def _seconds(share: _Share, writer: TileWriter) -> dict[str, float]:
    return {
        "decode": share.decode_seconds,
        "encode": writer.encode_seconds,
        "upload": writer.upload_seconds,
    }
