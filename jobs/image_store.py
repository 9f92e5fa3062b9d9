"""The output location of an image, a folder or a prefix of a bucket: which image it holds, and its state."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from infra.errors import StoreMissing
from infra.store.base import Store
from infra.store.decorator import local_folder
from infra.store.parts import remove_abandoned_parts
from render.errors import BadInput
from render.numerics import Numerics
from render.output.manifest import KEY, Manifest, parse_manifest
from render.sink import CHECKPOINT, WORK

MARKER = "spec.json"
"""Key of the file that says which image a location was claimed for."""
_WORK_PREFIXES = (WORK, "image_files/", "image.dzi", "preview.webp")
READ_PATIENCE_S = 30.0
"""A command that reads an image retries an unreachable store for so long."""


def claim(store: Store, digest: str, canonical_spec: str, numerics: Numerics) -> None:
    """Write the marker. This is the first write, so a store that denies it fails before any work is done."""
    marker = {
        "digest": digest,
        "spec": json.loads(canonical_spec),
        "numerics": {"identity": numerics.identity} | asdict(numerics),
    }
    text = json.dumps(marker, indent=1, sort_keys=True)
    if (folder := local_folder(store)) is not None:
        # Of an attempt that was killed, long ago.
        remove_abandoned_parts(folder)
    store.put(MARKER, text.encode(), "application/json")


def discard_other_numerics(store: Store, numerics: Numerics) -> bool:
    """Remove the work of an unfinished image that other numerics began. True if there was any.

    To be called before `claim`: a location never holds tiles of both. Work of version 0.1, whose marker names
    no numerics, stays: its checkpoints and journals say themselves what they came from.
    """
    found = _read_marker(store).get("numerics")
    identity = found.get("identity") if isinstance(found, dict) else None
    if identity is None or identity == numerics.identity:
        return False
    work = [entry.key for entry in store.entries() if entry.key.startswith(_WORK_PREFIXES)]
    for key in work:
        store.delete(key)
    return bool(work)


def find_finished(images: Store, folders: Iterable[str], digest: str) -> tuple[str, Manifest] | None:
    """The first of some folders that holds this image, finished, and its manifest."""
    for folder in folders:
        store = images.within(folder)
        found = _read(store, KEY)
        with suppress(BadInput):
            manifest = None if found is None else parse_manifest(found, store.url())
            if manifest is not None and manifest.digest == digest:
                return folder, manifest
    return None


def adopt_checkpoint(images: Store, old: str, new: str) -> bool:
    """Copy the checkpoint of an unfinished image from one folder to another that has none. True if it did.

    For work of version 0.1: its folder is left as it is, in case a node of that version still writes there.
    """
    source, target = images.within(old), images.within(new)
    if source.size(CHECKPOINT) is None or target.size(CHECKPOINT) is not None:
        return False
    target.put(CHECKPOINT, source.get(CHECKPOINT), "application/octet-stream")
    return True


def disclaim(store: Store) -> None:
    """Remove the marker, of an image that cannot be rendered after all."""
    store.delete(MARKER)


def finished_image(store: Store, digest: str) -> Manifest | None:
    """The manifest if this image is finished at the location; None if it can be rendered there.

    Raises `BadInput` if the location holds anything else.
    """
    found = _read(store, KEY)
    if found is not None:
        manifest = parse_manifest(found, store.url())
        _check_owner(store, manifest.digest, digest, "another spec's image")
        # Work files are left if a render was killed between writing the manifest and its cleanup.
        for entry in list(store.entries(WORK)):
            store.delete(entry.key)
        return manifest
    marker = _read(store, MARKER)
    if marker is None and next(store.entries(), None) is not None:
        # Read again: another machine of the same group may have written the marker just now.
        marker = _read(store, MARKER)
        if marker is None:
            raise BadInput("out", store.url(), "is not empty and holds no Chorale image; give a new location")
    if marker is not None:
        _check_owner(store, _parse_marker(marker).get("digest"), digest, "another spec's unfinished image")
    return None


def published_image(store: Store) -> Manifest:
    """The manifest of a finished image; raises `BadInput` if there is none."""
    return parse_manifest(_read(store, KEY), store.url())


def _read_marker(store: Store) -> dict[str, Any]:
    return _parse_marker(_read(store, MARKER) or b"")


def _parse_marker(data: bytes) -> dict[str, Any]:
    try:
        marker = json.loads(data)
    except ValueError:
        return {}
    return marker if isinstance(marker, dict) else {}


def _read(store: Store, key: str) -> bytes | None:
    with suppress(StoreMissing):
        return store.get(key)
    return None


def _check_owner(store: Store, owner: object, digest: str, what: str) -> None:
    if owner != digest:
        raise BadInput("out", store.url(), f"holds {what}; give another location, or remove it first")
