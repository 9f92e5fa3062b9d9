"""The folder that an image is rendered into: whose is it, and is it finished?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from render.errors import BadInput
from render.picture.folder import read_manifest
from render.picture.manifest import KEY

MARKER = "spec.json"
"""Says whose unfinished image a folder holds."""


def marker_text(digest: str, canonical_spec: str) -> str:
    return json.dumps({"digest": digest, "spec": json.loads(canonical_spec)}, indent=1, sort_keys=True)


def finished_image(out: Path, digest: str) -> dict[str, Any] | None:
    """The manifest if this very image is finished in `out`; None if it can be rendered (again) there.

    Raises `BadInput` when the folder holds anything else.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise BadInput("out", str(out), "is a file; name a folder")
    if (out / KEY).exists():
        manifest = read_manifest(out)
        _check_owner(out, manifest.get("digest"), digest, "another spec's image")
        # Left where a render was killed between the manifest, which is last, and its own cleaning up.
        shutil.rmtree(out / "work", ignore_errors=True)
        return manifest
    if (out / MARKER).exists():
        try:
            owner = json.loads((out / MARKER).read_bytes())["digest"]
        except (ValueError, KeyError, TypeError):
            owner = None
        _check_owner(out, owner, digest, "another spec's unfinished image")
    elif any(out.iterdir()):
        raise BadInput("out", str(out), "is not empty and holds no image of ours; name a new folder")
    return None


def _check_owner(out: Path, owner: object, digest: str, what: str) -> None:
    if owner != digest:
        raise BadInput("out", str(out), f"holds {what}; name another folder, or remove it first")
