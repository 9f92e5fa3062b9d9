"""The Deep Zoom pyramid, written by the ranks themselves; no rank ever holds the whole image.

Each rank decodes its blocks one after another, cuts them into tiles and halves them as long as whole tiles
come out. What is left of a block then (a sixteenth of its pixels or less for large images) is gathered, and
rank 0 makes the few top levels from it.
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
from render.output.decode import block_decoder
from render.output.encode import ENDINGS, encode, published_parameters
from render.output.kept_check import count_kept
from render.output.pixels import Pixels, halved, narrowed, shown, with_alpha
from render.output.pyramid_report import PyramidReport
from render.output.seams import LineDifferences, add_block
from render.output.tile_entry import Tiles, tiles_from_json, tiles_to_json
from render.output.tile_writer import TileWriter
from render.plan.decode_layout import DecodeLayout
from render.plan.geometry import Rect
from render.plan.plan import Plan
from render.sink import Sink
from render.spec import KEEP_ALPHA, Spec

PREVIEW_SIDE = 1024
"""Longest side of the finished image's `preview.webp`, in pixels."""

OnProgress = Callable[[int, int, int, dict[str, float]], None]
"""Called after each block with this rank's blocks done, its blocks in all, the pixels that were decoded for
the block (0 where the journal had it), and the rank's seconds so far, by phase."""


def publish_pyramid(
    latents: LatentRegion,
    adapter: Adapter,
    plan: Plan,
    group: Group,
    sink: Sink,
    *,
    device: torch.device,
    journal: BlockJournal | None = None,
    on_progress: OnProgress = lambda done, total, pixels, seconds: None,
) -> PyramidReport:
    """Decode the rank's blocks and write the tiles of all levels. All ranks must call it.

    `latents` holds `plan.latents_of(group.rank)` of the finished canvas at least; `plan` is that of the
    group's world size. Blocks that `journal` holds are left as they are.
    Raises `OSError` and the sink's own errors when a file cannot be stored.
    """
    assert plan.world_size == group.world_size, "the plan is that of the group"
    layout = plan.decode
    columns, rows = plan.seam_lines
    own = _Measurements(layout, LineDifferences(columns), LineDifferences(rows))
    grid, blocks = layout.tile_grid(group.world_size), plan.blocks_of(group.rank)
    started = time.perf_counter()
    with (
        TileWriter(plan.spec, sink, journal) as writer,
        block_decoder(adapter, latents, grid, group, device, plan.spec.bit_depth) as decode_block,
    ):
        own.decode_seconds += time.perf_counter() - started
        for number, block in enumerate(blocks):
            entry = None if journal is None else journal.load(block)
            if entry is not None:
                writer.tiles |= entry[0]
                own.add(entry[1])
            else:
                started = time.perf_counter()
                pixels = _finished(plan.spec, block, decode_block(block))
                own.decode_seconds += time.perf_counter() - started
                measurements = own.empty().take(block, pixels, writer).pack()
                writer.finish_block(block, measurements)
                own.add(measurements)
            decoded = 0 if entry is not None else block.width * block.height
            on_progress(number + 1, len(blocks), decoded, _seconds(own, writer))
        whole = _gather(own, group)
        if group.rank == 0:
            _write_top(layout, whole, plan.spec, writer)
    return _report(layout, own, whole, writer, group)


def _finished(spec: Spec, block: Rect, pixels: Pixels) -> Pixels:
    """What is written of a decoded block."""
    if spec.alpha != KEEP_ALPHA:
        return pixels
    assert spec.source is not None, "the spec refuses to keep the alpha of nothing"
    return with_alpha(spec.source, block, pixels)


@dataclass
class _Measurements:
    """What was measured in some blocks, and what is left of them: of one block, a rank's, or all."""

    layout: DecodeLayout
    columns: LineDifferences
    rows: LineDifferences
    kept_pixels: int = 0
    """Pixels that are kept in full, and were found to be the init image's."""
    decode_seconds: float = 0.0
    darkest: int = 255
    brightest: int = 0
    leftovers: list[tuple[int, int, Pixels]] = field(default_factory=list)
    """(y, x, pixels) of each block at the first level that has no whole tiles of it."""
    edges: list[tuple[Rect, tuple[Pixels, Pixels, Pixels, Pixels]]] = field(default_factory=list)
    """Each block and its top, bottom, left and right line of pixels, as shown."""

    def empty(self) -> _Measurements:
        """Measurements of no block of the same image."""
        return _Measurements(
            self.layout, LineDifferences(self.columns.lines), LineDifferences(self.rows.lines)
        )

    def take(self, block: Rect, pixels: Pixels, writer: TileWriter) -> _Measurements:
        """Measure a decoded block, write its tiles, and keep what is left of it."""
        self.kept_pixels += count_kept(writer.spec.kept, block, pixels)
        seen = shown(pixels)
        add_block(self.columns, self.rows, block, seen)
        self.edges.append((block, (seen[0], seen[-1], seen[:, 0], seen[:, -1])))
        self.darkest = min(self.darkest, int(seen.min()))
        self.brightest = max(self.brightest, int(seen.max()))
        side = self.layout.tile_size
        for down in range(self.layout.block_levels):
            origin_col, origin_row = ((at >> down) // side for at in (block.x, block.y))
            writer.put_level(self.layout.top_level - down, origin_col, origin_row, pixels, side)
            pixels = halved(pixels)
        shift = self.layout.block_levels
        self.leftovers.append((block.y >> shift, block.x >> shift, pixels))
        return self

    def pack(self) -> bytes:
        """As bytes that `add` takes."""
        header = {
            "darkest": self.darkest,
            "brightest": self.brightest,
            "kept_pixels": self.kept_pixels,
            "blocks": [asdict(block) for block, _ in self.edges],
            "leftovers": [(y, x, *pixels.shape, pixels.itemsize) for y, x, pixels in self.leftovers],
        }
        arrays: list[NDArray[Any]] = [
            array for lines in (self.columns, self.rows) for array in (lines.absolute, lines.signed)
        ]
        arrays += [edge for _, edges in self.edges for edge in edges]
        arrays += [pixels for _, _, pixels in self.leftovers]
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "big") + text + b"".join(array.tobytes() for array in arrays)

    def add(self, data: bytes) -> None:
        """Add what another rank, or an earlier attempt, has packed."""
        length = int.from_bytes(data[:8], "big")
        header = json.loads(data[8 : 8 + length])
        at = 8 + length

        def read(shape: tuple[int, ...], dtype: Any) -> Any:
            nonlocal at
            count = int(np.prod(shape))
            array = np.frombuffer(data, dtype, count, at).reshape(shape)
            at += array.nbytes
            return array

        self.darkest = min(self.darkest, header["darkest"])
        self.brightest = max(self.brightest, header["brightest"])
        self.kept_pixels += header.get("kept_pixels", 0)
        for lines in (self.columns, self.rows):
            lines.merge(read(lines.absolute.shape, np.int64), read(lines.signed.shape, np.int64))
        for values in header["blocks"]:
            block = Rect(**values)
            rows = [read((block.width, 3), np.uint8) for _ in range(2)]
            cols = [read((block.height, 3), np.uint8) for _ in range(2)]
            # Copies: a view would keep all of `data` in memory.
            top, bottom, left, right = (edge.copy() for edge in rows + cols)
            self.edges.append((block, (top, bottom, left, right)))
        for y, x, height, width, *rest in header["leftovers"]:
            # Journals of earlier versions have 8 bits and no transparency.
            bands, size = rest or (3, 1)
            kind = np.uint16 if size == 2 else np.uint8
            self.leftovers.append((y, x, read((height, width, bands), kind).copy()))


def _gather(own: _Measurements, group: Group) -> _Measurements:
    """The measurements of all blocks, and of the lines between them. Bytes are gathered, never sums."""
    whole = own.empty()
    for data in group.all_gather_bytes(own.pack()):
        whole.add(data)
    _add_differences_between_blocks(whole)
    return whole


def _add_differences_between_blocks(whole: _Measurements) -> None:
    """Add the differences between the last line of one block and the first of the next."""
    by_corner = {(block.y, block.x): edges for block, edges in whole.edges}
    side = whole.layout.block_size

    def before(start: int, length: int) -> int:
        return start - side if start else (length - 1) // side * side

    for block, (top, _, left, _) in whole.edges:
        # Line 0 is only measured where the image wraps: the block before the first one is the last one.
        above = by_corner.get((before(block.y, whole.layout.height), block.x))
        beside = by_corner.get((block.y, before(block.x, whole.layout.width)))
        if above is not None and block.y in whole.rows.lines.all:
            whole.rows.add(block.y, block.x, above[1], top)
        if beside is not None and block.x in whole.columns.lines.all:
            whole.columns.add(block.x, block.y, beside[3], left)


def _write_top(layout: DecodeLayout, whole: _Measurements, spec: Spec, writer: TileWriter) -> None:
    """Write the levels above the blocks' own, the preview and the Deep Zoom descriptor."""
    level = layout.top_level - layout.block_levels
    width, height = layout.size_at(level)
    like = whole.leftovers[0][2]
    pixels = np.empty((height, width, like.shape[2]), like.dtype)
    for y, x, part in whole.leftovers:
        pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
    preview: Pixels | None = None
    while level >= 0:
        writer.put_level(level, 0, 0, pixels, layout.tile_size)
        if preview is None and max(pixels.shape[:2]) <= PREVIEW_SIDE:
            preview = pixels
        pixels, level = halved(pixels), level - 1
    parameters = published_parameters(spec.to_dict(), prompt=False)
    small = narrowed(preview if preview is not None else pixels)
    data = encode(small, "webp", 90, parameters, source_type=spec.source_type)
    writer.put_extra("preview.webp", data, "image/webp")
    writer.put_extra("image.dzi", _descriptor(layout, spec).encode(), "application/xml")


def _descriptor(layout: DecodeLayout, spec: Spec) -> str:
    size = f'<Size Width="{layout.width}" Height="{layout.height}"/>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="{ENDINGS[spec.format]}" '
        f'Overlap="0" TileSize="{layout.tile_size}">{size}</Image>\n'
    )


def _report(
    layout: DecodeLayout, own: _Measurements, whole: _Measurements, writer: TileWriter, group: Group
) -> PyramidReport:
    """Gather the tiles' digests; called after the writer is closed, so all of them are stored."""
    tiles: Tiles = {}
    for data in group.all_gather_bytes(json.dumps(tiles_to_json(writer.tiles)).encode()):
        tiles |= tiles_from_json(json.loads(data))
    return PyramidReport(
        layout=layout,
        tiles=dict(sorted(tiles.items())),
        columns=whole.columns,
        rows=whole.rows,
        darkest=whole.darkest,
        brightest=whole.brightest,
        kept_pixels=whole.kept_pixels,
        seconds=_seconds(own, writer),
    )


def _seconds(own: _Measurements, writer: TileWriter) -> dict[str, float]:
    return {
        "decode": own.decode_seconds,
        "encode": writer.encode_seconds,
        "upload": writer.upload_seconds,
    }
