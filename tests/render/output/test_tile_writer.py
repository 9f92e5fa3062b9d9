"""Tiles are stored concurrently through bounded queues, and journal entries after their tiles."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from render.output.block_journal import BlockJournal
from render.output.tile_writer import _QUEUED_FILES, UPLOADS, TileWriter
from render.plan.geometry import Rect
from render.spec import Spec
from tests.support.cli import wait_until
from tests.support.sinks import MemorySink

SPEC = Spec(prompt="x")
BLOCK = Rect(y=0, x=0, height=128, width=128)


class Slow(MemorySink):
    """Blocks every put until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.order = threading.Event(), list[str]()
        self.waiting = 0
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        with self._lock:
            self.waiting += 1
        assert self.go.wait(60)
        super().put(key, data, content_type, immutable)
        self.order.append(key)


def test_uploads_overlap_and_a_slow_store_blocks_the_producer() -> None:
    sink, queued = Slow(), list[int]()

    def fill() -> None:
        with TileWriter(SPEC, sink, None) as writer:
            for number in range(100):
                writer.put_extra(f"file-{number}", b"x", "text/plain")
                queued.append(number)

    with ThreadPoolExecutor(1) as pool:
        filling = pool.submit(fill)
        wait_until(lambda: sink.waiting == UPLOADS and len(queued) == _QUEUED_FILES)
        assert not filling.done()
        assert (sink.waiting, len(queued)) == (UPLOADS, _QUEUED_FILES)
        sink.go.set()
        filling.result(60)
    assert len(sink.files) == 100


def test_a_journal_entry_is_stored_after_all_its_tiles() -> None:
    sink = Slow()
    with TileWriter(SPEC, sink, BlockJournal(sink, "mine")) as writer:
        writer.put_level(3, 0, 0, np.zeros((128, 128, 3), np.uint8), 64)
        writer.finish_block(BLOCK, b"measurements")
        wait_until(lambda: sink.waiting == 4)
        sink.go.set()
    assert len(sink.order) == 5 and sink.order[-1] == "work/block-0-0"
    entry = BlockJournal(sink, "mine").load(BLOCK)
    assert entry is not None and entry[0] == writer.tiles and entry[1] == b"measurements"


def test_a_failed_tile_raises_and_its_block_gets_no_entry() -> None:
    class Breaks(MemorySink):
        def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
            if key.endswith("1_1.png"):
                raise OSError("the store is down")
            super().put(key, data, content_type, immutable)

    sink = Breaks()

    def write() -> None:
        with TileWriter(SPEC, sink, BlockJournal(sink, "mine")) as writer:
            writer.put_level(3, 0, 0, np.zeros((128, 128, 3), np.uint8), 64)
            writer.finish_block(BLOCK, b"measurements")

    with pytest.raises(OSError, match="down"):
        write()
    assert BlockJournal(sink, "mine").load(BLOCK) is None
