"""A published image's manifest as it is read back: what `verify` and `export` begin with. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from render.errors import BadInput
from render.picture.manifest import KEY


def parse_manifest(data: bytes | None, where: str) -> dict[str, Any]:
    """The manifest of the image at `where`; raises `BadInput` when there is none or it cannot be read."""
    if data is None:
        raise BadInput("image", where, f"has no {KEY}; give what chorale render wrote, once it is finished")
    try:
        manifest = json.loads(data)
    except ValueError as exc:
        raise BadInput("image", where, f"has a {KEY} that cannot be read; render again") from exc
    if not isinstance(manifest, dict) or "tiles" not in manifest or "root" not in manifest:
        raise BadInput("image", where, f"has a {KEY} that is not an image's; render again")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an image in a local folder; raises `BadInput`."""
    if not folder.is_dir():
        raise BadInput("image", str(folder), "is not a folder; give the one that chorale render wrote")
    try:
        data = (folder / KEY).read_bytes()
    except FileNotFoundError:
        data = None
    except OSError as exc:
        raise BadInput("image", str(folder), f"has a {KEY} that cannot be read; render again") from exc
    return parse_manifest(data, str(folder))
