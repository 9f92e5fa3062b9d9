"""Hash every tile again and hold it against the manifest. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from render.picture.folder import read_manifest
from render.picture.manifest import root_of


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Keys of tiles that are not as the manifest says."""

    root: str
    tiles: int
    missing: tuple[str, ...]
    altered: tuple[str, ...]
    extra: tuple[str, ...]
    root_matches: bool

    @property
    def passes(self) -> bool:
        return self.root_matches and not (self.missing or self.altered or self.extra)


def verify_image(
    folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> VerifyReport:
    """Check an image's folder; raises `BadInput` when it has no readable manifest."""
    manifest = read_manifest(folder)
    tiles = manifest["tiles"]
    missing, altered = [], []
    for number, (key, known) in enumerate(sorted(tiles.items())):
        try:
            data = (folder / key).read_bytes()
        except FileNotFoundError:
            missing.append(key)
        else:
            if hashlib.sha256(data).hexdigest() != known["sha256"]:
                altered.append(key)
        on_progress(number + 1, len(tiles))
    found = (path for path in (folder / "image_files").rglob("*") if path.is_file())
    extra = {path.relative_to(folder).as_posix() for path in found} - tiles.keys()
    return VerifyReport(
        root=manifest["root"],
        tiles=len(tiles),
        missing=tuple(missing),
        altered=tuple(altered),
        extra=tuple(sorted(extra)),
        root_matches=root_of(tiles) == manifest["root"],
    )
