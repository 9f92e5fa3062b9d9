"""Hash every tile again and hold it against the manifest. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from render.output.manifest import root_of
from render.sink import Source

_AT_ONCE = 8
"""Tiles that are read at the same time."""


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
    source: Source,
    manifest: Mapping[str, Any],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyReport:
    """Hold an image's tiles against its manifest; raises the source's own errors."""
    tiles = manifest["tiles"]
    there = {entry.key for entry in source.entries("image_files/")}

    def is_whole(key: str) -> bool:
        return bool(hashlib.sha256(source.get(key)).hexdigest() == tiles[key]["sha256"])

    known = sorted(tiles.keys() & there)
    altered = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, (key, whole) in enumerate(zip(known, pool.map(is_whole, known), strict=True)):
            if not whole:
                altered.append(key)
            on_progress(number + 1, len(known))
    return VerifyReport(
        root=manifest["root"],
        tiles=len(tiles),
        missing=tuple(sorted(tiles.keys() - there)),
        altered=tuple(altered),
        extra=tuple(sorted(there - tiles.keys())),
        root_matches=root_of(tiles) == manifest["root"],
    )
