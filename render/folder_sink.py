"""A folder as the engine's sink, for the Python face. The farm has stores with more patience."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


class FolderSink:
    """The `Sink` protocol over a folder that is made at the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        part = self._part(key, data)
        part.replace(self.folder / key)

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        part = self._part(key, data)
        try:
            os.link(part, self.folder / key)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        return True

    def size(self, key: str) -> int | None:
        path = self.folder / key
        return path.stat().st_size if path.exists() else None

    def get(self, key: str) -> bytes:
        return (self.folder / key).read_bytes()

    def delete(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)

    def _part(self, key: str, data: bytes) -> Path:
        """The bytes in a file beside the one that they shall be, so that this one is never half there."""
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{uuid.uuid4().hex}")
        part.write_bytes(data)
        return part
