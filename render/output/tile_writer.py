"""Encodes and stores a rank's tiles beside the decoding, with bounded lines between.

Decoding, encoding and storing overlap: one thread encodes, several store, since what a store takes is
mostly waiting. A line that is full holds up whoever fills it, so a slow store costs time, never memory.
"""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from render.output.block_journal import BlockJournal
from render.output.encode import CONTENT_TYPES, ENDINGS, Pixels, encode
from render.plan.decode_layout import tile_key
from render.plan.geometry import Rect
from render.sink import Sink
from render.spec import Spec

UPLOADS = 8
"""Files on their way to the sink at once."""
_WAITING_PIXELS = 8
_WAITING_FILES = 16
"""Tiles that may wait to be encoded, and to be stored: they bound a rank's memory."""
Result = TypeVar("Result")


class TileWriter:
    """Takes tiles and records of blocks, and has stored them all when its block ends.

    `tiles` holds key -> {sha256, bytes} of those that are stored; `encode_seconds` and `upload_seconds` are
    the threads' own, which run beside each other.
    """

    def __init__(self, spec: Spec, sink: Sink, records: BlockJournal | None) -> None:
        self._spec, self._sink, self._records = spec, sink, records
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._uploads = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        self._pixels_room = threading.Semaphore(_WAITING_PIXELS)
        self._files_room = threading.Semaphore(_WAITING_FILES)
        self._jobs: list[Future[Any]] = []
        self._block: dict[str, Future[Future[None]]] = {}
        """Tiles since the last record: being encoded, and then being stored."""
        self._lock = threading.Lock()
        self.tiles: dict[str, dict[str, Any]] = {}
        self.encode_seconds = self.upload_seconds = 0.0

    def __enter__(self) -> TileWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # The encoder first: it may be waiting for room, which only uploads that run can make.
        self._encoder.shutdown(wait=True, cancel_futures=kind is not None)
        self._uploads.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise what a tile or a record has failed with."""
        with self._lock:
            done = [job for job in self._jobs if job.done()]
            self._jobs = [job for job in self._jobs if not job.done()]
        for job in done:
            job.result()

    def put_level(self, level: int, origin_col: int, origin_row: int, pixels: Pixels, side: int) -> None:
        """Cut [h, w, 3] pixels whose first tile is (origin_col, origin_row) into tiles."""
        ending = ENDINGS[self._spec.format]
        for y in range(0, pixels.shape[0], side):
            for x in range(0, pixels.shape[1], side):
                key = tile_key(level, origin_col + x // side, origin_row + y // side, ending)
                self._pixels_room.acquire()
                part = np.ascontiguousarray(pixels[y : y + side, x : x + side])
                self._block[key] = self._later(self._encoder.submit(self._encode, key, part))
        self.check()

    def put_record(self, block: Rect, learned: bytes) -> None:
        """Record a block whose tiles have all been put; it is stored after them."""
        tiles, self._block = self._block, {}
        if self._records is not None:
            # By way of the encoder: when its turn comes, all tiles of the block are on their way.
            self._later(self._encoder.submit(self._put_record, self._records, block, tiles, learned))

    def put_extra(self, key: str, data: bytes, content_type: str) -> None:
        """A file that is not a tile; not part of the root."""
        self._upload(key, data, content_type, immutable=False)

    def _encode(self, key: str, pixels: Pixels) -> Future[None]:
        started = time.perf_counter()
        try:
            data = encode(pixels, self._spec.format, self._spec.quality)
        finally:
            self._pixels_room.release()
            self.encode_seconds += time.perf_counter() - started
        return self._upload(key, data, CONTENT_TYPES[self._spec.format], immutable=True)

    def _upload(self, key: str, data: bytes, content_type: str, *, immutable: bool) -> Future[None]:
        self._files_room.acquire()
        return self._later(self._uploads.submit(self._put, key, data, content_type, immutable))

    def _put(self, key: str, data: bytes, content_type: str, immutable: bool) -> None:
        started = time.perf_counter()
        try:
            self._sink.put(key, data, content_type, immutable)
            if immutable:
                self.tiles[key] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        finally:
            self._files_room.release()
            with self._lock:
                self.upload_seconds += time.perf_counter() - started

    def _put_record(
        self, records: BlockJournal, block: Rect, tiles: dict[str, Future[Future[None]]], learned: bytes
    ) -> None:
        stored = {key: encoded.result() for key, encoded in tiles.items()}
        self._later(self._uploads.submit(self._keep, records, block, stored, learned))

    def _keep(
        self, records: BlockJournal, block: Rect, stored: dict[str, Future[None]], learned: bytes
    ) -> None:
        # The line before the uploads is in order, so those that are waited for here are running or done.
        # A tile that failed tells so itself; its block just gets no record.
        if not any(upload.exception() for upload in stored.values()):
            records.keep(block, {key: self.tiles[key] for key in stored}, learned)

    def _later(self, job: Future[Result]) -> Future[Result]:
        """A job whose error `check` shall raise."""
        with self._lock:
            self._jobs.append(job)
        return job
