"""An image in a local folder: what the Python face writes, and `verify` and `export` read. Torch-free."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from render.errors import BadInput
from render.picture.manifest import KEY


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an image's folder; raises `BadInput` when there is none or it cannot be read."""
    if not folder.is_dir():
        raise BadInput("folder", str(folder), "is not a folder; give the one that chorale render wrote")
    try:
        manifest = json.loads((folder / KEY).read_bytes())
    except FileNotFoundError as exc:
        raise BadInput("folder", str(folder), f"has no {KEY}; the image is not finished") from exc
    except (OSError, ValueError) as exc:
        raise BadInput("folder", str(folder), f"has a {KEY} that cannot be read; render again") from exc
    if not isinstance(manifest, dict) or "tiles" not in manifest or "root" not in manifest:
        raise BadInput("folder", str(folder), f"has a {KEY} that is not an image's; render again")
    return manifest


class FolderSink:
    """A folder as the engine's sink. The farm has stores with more patience in `infra.store`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, data: bytes, content_type: str) -> None:
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
