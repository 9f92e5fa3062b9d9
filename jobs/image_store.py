"""The output location of an image, a folder or a prefix of a bucket: which image it holds, and its state."""

from __future__ import annotations

import json
from contextlib import suppress

from infra.errors import StoreMissing
from infra.store.base import Store
from render.errors import BadInput
from render.output.manifest import KEY, Manifest, parse_manifest
from render.sink import WORK

MARKER = "spec.json"
"""Key of the file that says which image a location was claimed for."""
READ_PATIENCE_S = 30.0
"""A command that reads an image retries an unreachable store for so long."""


def claim(store: Store, digest: str, canonical_spec: str) -> None:
    """Write the marker. This is the first write, so a store that denies it fails before any work is done."""
    text = json.dumps({"digest": digest, "spec": json.loads(canonical_spec)}, indent=1, sort_keys=True)
    store.put(MARKER, text.encode(), "application/json")


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
        try:
            owner = json.loads(marker)["digest"]
        except (ValueError, KeyError, TypeError):
            owner = None
        _check_owner(store, owner, digest, "another spec's unfinished image")
    return None


def published_image(store: Store) -> Manifest:
    """The manifest of a finished image; raises `BadInput` if there is none."""
    return parse_manifest(_read(store, KEY), store.url())


def _read(store: Store, key: str) -> bytes | None:
    with suppress(StoreMissing):
        return store.get(key)
    return None


def _check_owner(store: Store, owner: object, digest: str, what: str) -> None:
    if owner != digest:
        raise BadInput("out", store.url(), f"holds {what}; give another location, or remove it first")
