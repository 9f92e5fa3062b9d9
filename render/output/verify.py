"""Hash every tile again and compare it with the manifest. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from render.output.manifest import Manifest, root_of
from render.sink import Source

_CONCURRENT_READS = 8
"""Tiles that are read at the same time."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Keys of tiles that differ from the manifest."""

    root: str
    tiles: int
    missing: tuple[str, ...]
    altered: tuple[str, ...]
    extra: tuple[str, ...]
    root_matches: bool

    @property
    def passes(self) -> bool:
        """Whether every tile, and the root, is as the manifest lists it."""
        return self.root_matches and not (self.missing or self.altered or self.extra)


def verify_image(
    source: Source,
    manifest: Manifest,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyReport:
    """Compare an image's tiles with its manifest; raises the source's own errors.

    `on_progress` is called with tiles done and tiles in all.
    """
    tiles = manifest.tiles
    stored = {entry.key for entry in source.entries("image_files/")}

    def matches(key: str) -> bool:
        return hashlib.sha256(source.get(key)).hexdigest() == tiles[key].sha256

    common = sorted(tiles.keys() & stored)
    altered = []
    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        for number, (key, same) in enumerate(zip(common, pool.map(matches, common), strict=True)):
            if not same:
                altered.append(key)
            on_progress(number + 1, len(common))
    return VerifyReport(
        root=manifest.root,
        tiles=len(tiles),
        missing=tuple(sorted(tiles.keys() - stored)),
        altered=tuple(altered),
        extra=tuple(sorted(stored - tiles.keys())),
        root_matches=root_of(tiles) == manifest.root,
    )
