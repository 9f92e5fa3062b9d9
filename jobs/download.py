"""Copies a published image, or some of its tiles, from its store into a local folder."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from infra.store.base import Store
from infra.store.decorator import local_folder
from infra.store.local import LocalStore
from render.errors import BadInput, RenderFailed
from render.output.encode import CONTENT_TYPES
from render.output.manifest import KEY, Manifest
from render.output.tile_entry import TileEntry

_WORKERS = 8
_EXTRAS = {"image.dzi": "application/xml", "preview.webp": "image/webp"}

OnProgress = Callable[[int, int], None]
"""Called with the number of files done and the total."""


def download(store: Store, manifest: Manifest, target: LocalStore, on_progress: OnProgress) -> int:
    """Copy a complete image, its manifest last. Tiles that exist already are kept. Returns the bytes fetched.

    Raises `BadInput` if the folder holds anything else, `RenderFailed` for a tile that differs from the
    manifest.
    """
    _check_folder(target, manifest)
    fetched = fetch_tiles(store, manifest, manifest.tiles, target, on_progress)
    for key, content_type in _EXTRAS.items():
        data = store.get(key)
        target.put(key, data, content_type)
        fetched += len(data)
    target.put(KEY, store.get(KEY), "application/json")
    return fetched


def fetch_tiles(
    store: Store,
    manifest: Manifest,
    keys: Iterable[str],
    target: LocalStore,
    on_progress: OnProgress,
) -> int:
    """Copy tiles and check each against the manifest. Returns the bytes fetched. Memory use is bounded."""
    tiles, wanted = manifest.tiles, sorted(keys)

    def fetch(key: str) -> int:
        if target.size(key) is not None and _is_whole(target.get(key), tiles[key]):
            return 0
        data = store.get(key)
        if not _is_whole(data, tiles[key]):
            raise RenderFailed(f"{store.url(key)} differs from the manifest; run chorale verify")
        target.put(key, data, CONTENT_TYPES[manifest.format], immutable=True)
        return len(data)

    fetched = 0
    with ThreadPoolExecutor(_WORKERS) as pool:
        for number, size in enumerate(pool.map(fetch, wanted)):
            fetched += size
            on_progress(number + 1, len(wanted))
    return fetched


@contextmanager
def local_tiles(
    store: Store,
    manifest: Manifest,
    on_progress: OnProgress = lambda done, total: None,
    beside: Path | None = None,
) -> Iterator[Path]:
    """A folder with an image's tiles of full size: the store's own, else a temporary one in `beside`.

    libvips reads many tiles at once and cannot wait for the network. `on_progress` is called for what is
    copied.
    """
    folder = local_folder(store)
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=".chorale-", dir=beside) as name:
        fetch_tiles(store, manifest, manifest.full_level_keys(), LocalStore(Path(name)), on_progress)
        yield Path(name)


def _is_whole(data: bytes, tile: TileEntry) -> bool:
    return hashlib.sha256(data).hexdigest() == tile.sha256


def _check_folder(target: LocalStore, manifest: Manifest) -> None:
    folder = target.folder
    if folder.exists() and not folder.is_dir():
        raise BadInput("folder", str(folder), "is a file; give a folder")
    ours = manifest.tiles.keys() | {*_EXTRAS, KEY}
    foreign = [entry.key for entry in target.entries() if entry.key not in ours]
    if foreign:
        raise BadInput("folder", str(folder), f"contains other files ({foreign[0]}); give a new folder")
