"""A published image in a local folder: what `verify` and `export` read. Torch-free."""

from __future__ import annotations

import json
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
