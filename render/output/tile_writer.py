"""Encodes and stores a rank's tiles while the next block is decoded, with bounded queues between.

Decoding, encoding and storing overlap: one thread encodes, several store, since storing is mostly waiting. A
full queue blocks whoever fills it, so a slow store costs time and never memory.
"""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from render.output.block_journal import BlockJournal
from render.output.encode import CONTENT_TYPES, ENDINGS, encode
from render.output.kept_check import check_file
from render.output.pixels import Pixels
from render.output.tile_entry import TileEntry, Tiles
from render.plan.decode_layout import tile_key
from render.plan.geometry import Rect
from render.sink import Sink
from render.spec import Spec

UPLOADS = 8
"""Files that are stored at the same time."""
_QUEUED_TILES = 8
_QUEUED_FILES = 16
"""Tiles that may wait to be encoded, and files that may wait to be stored: they bound a rank's memory."""
Result = TypeVar("Result")


class TileWriter:
    """Takes tiles and journal entries; when its `with` block ends, all of them are stored.

    `tiles` lists those that are stored. `encode_seconds` and `upload_seconds` are the threads' own times,
    which overlap.
    """

    def __init__(self, spec: Spec, sink: Sink, journal: BlockJournal | None) -> None:
        self.spec = spec
        self._sink, self._journal = sink, journal
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._uploads = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        self._tile_slots = threading.Semaphore(_QUEUED_TILES)
        self._file_slots = threading.Semaphore(_QUEUED_FILES)
        self._pending: list[Future[Any]] = []
        self._block: dict[str, Future[Future[None]]] = {}
        """Tiles since the last journal entry: each is encoded first, then stored."""
        self._lock = threading.Lock()
        self.tiles: Tiles = {}
        self.encode_seconds = self.upload_seconds = 0.0

    def __enter__(self) -> TileWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # The encoder first: it may be waiting for a slot, which only running uploads can free.
        self._encoder.shutdown(wait=True, cancel_futures=kind is not None)
        self._uploads.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise the error of a tile or journal entry that has failed."""
        with self._lock:
            done = [future for future in self._pending if future.done()]
            self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()

    def put_level(self, level: int, origin_col: int, origin_row: int, pixels: Pixels, side: int) -> None:
        """Cut pixels, whose first tile is (origin_col, origin_row), into tiles of `side` pixels."""
        ending = ENDINGS[self.spec.format]
        for y in range(0, pixels.shape[0], side):
            for x in range(0, pixels.shape[1], side):
                key = tile_key(level, origin_col + x // side, origin_row + y // side, ending)
                self._tile_slots.acquire()
                tile = np.ascontiguousarray(pixels[y : y + side, x : x + side])
                self._block[key] = self._track(self._encoder.submit(self._encode, key, tile))
        self.check()

    def finish_block(self, block: Rect, measurements: bytes) -> None:
        """Add a block, whose tiles have all been put, to the journal once they are stored."""
        tiles, self._block = self._block, {}
        if self._journal is not None:
            # Through the encoder: when this runs, all tiles of the block are encoded.
            self._track(self._encoder.submit(self._journalize, self._journal, block, tiles, measurements))

    def put_extra(self, key: str, data: bytes, content_type: str) -> None:
        """A file that is not a tile; it is not part of the root."""
        self._upload(key, data, content_type, immutable=False)

    def _encode(self, key: str, pixels: Pixels) -> Future[None]:
        started = time.perf_counter()
        try:
            data = self._encoded(pixels)
        finally:
            self._tile_slots.release()
            self.encode_seconds += time.perf_counter() - started
        return self._upload(key, data, CONTENT_TYPES[self.spec.format], immutable=True)

    def _encoded(self, pixels: Pixels) -> bytes:
        spec, keeps = self.spec, self.spec.kept is not None
        data = encode(
            pixels, spec.format, spec.quality, source_type=spec.source_type, lossless=keeps, icc=spec.icc
        )
        if keeps:
            check_file(data, pixels)
        return data

    def _upload(self, key: str, data: bytes, content_type: str, *, immutable: bool) -> Future[None]:
        self._file_slots.acquire()
        return self._track(self._uploads.submit(self._put, key, data, content_type, immutable))

    def _put(self, key: str, data: bytes, content_type: str, immutable: bool) -> None:
        started = time.perf_counter()
        try:
            self._sink.put(key, data, content_type, immutable)
            if immutable:
                self.tiles[key] = TileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        finally:
            self._file_slots.release()
            with self._lock:
                self.upload_seconds += time.perf_counter() - started

    def _journalize(
        self, journal: BlockJournal, block: Rect, tiles: dict[str, Future[Future[None]]], measurements: bytes
    ) -> None:
        uploads = {key: encoded.result() for key, encoded in tiles.items()}
        self._track(self._uploads.submit(self._save, journal, block, uploads, measurements))

    def _save(
        self, journal: BlockJournal, block: Rect, uploads: dict[str, Future[None]], measurements: bytes
    ) -> None:
        # Uploads start in order, so those that are waited for here are running or done. A tile that failed
        # raises its own error in `check`; its block gets no entry.
        if not any(upload.exception() for upload in uploads.values()):
            journal.save(block, {key: self.tiles[key] for key in uploads}, measurements)

    def _track(self, future: Future[Result]) -> Future[Result]:
        """Have `check` raise the error of a future."""
        with self._lock:
            self._pending.append(future)
        return future
