"""The place that an image is rendered into, a folder or a prefix of a bucket: whose is it, is it finished?"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from infra.errors import StoreMissing
from infra.store.base import Store
from render.errors import BadInput
from render.output.manifest import KEY, parse_manifest
from render.sink import WORK

MARKER = "spec.json"
"""Says whose unfinished image a place holds."""
READ_PATIENCE_S = 30.0
"""So long a command that reads an image waits for a store that is away."""


def claim(store: Store, digest: str, canonical_spec: str) -> None:
    """Say whose image this will be. The first thing that is written, so it fails before any work is done."""
    text = json.dumps({"digest": digest, "spec": json.loads(canonical_spec)}, indent=1, sort_keys=True)
    store.put(MARKER, text.encode(), "application/json")


def disclaim(store: Store) -> None:
    """Take a claim back, of an image that has turned out not to be possible."""
    store.delete(MARKER)


def finished_image(store: Store, digest: str) -> dict[str, Any] | None:
    """The manifest if this very image is finished there; None if it can be rendered (again) there.

    Raises `BadInput` when the place holds anything else.
    """
    found = _read(store, KEY)
    if found is not None:
        manifest = parse_manifest(found, store.url())
        _check_owner(store, manifest.get("digest"), digest, "another spec's image")
        # Left where a render was killed between the manifest, which is last, and its own cleaning up.
        for entry in list(store.entries(WORK)):
            store.delete(entry.key)
        return manifest
    marker = _read(store, MARKER)
    if marker is None and next(store.entries(), None) is not None:
        # Read once more: another machine of the same group may have claimed the place just now.
        marker = _read(store, MARKER)
        if marker is None:
            raise BadInput("out", store.url(), "is not empty and holds no image of ours; name a new place")
    if marker is not None:
        try:
            owner = json.loads(marker)["digest"]
        except (ValueError, KeyError, TypeError):
            owner = None
        _check_owner(store, owner, digest, "another spec's unfinished image")
    return None


def published_image(store: Store) -> dict[str, Any]:
    """The manifest of a finished image; raises `BadInput` when there is none."""
    return parse_manifest(_read(store, KEY), store.url())


def _read(store: Store, key: str) -> bytes | None:
    with suppress(StoreMissing):
        return store.get(key)
    return None


def _check_owner(store: Store, owner: object, digest: str, what: str) -> None:
    if owner != digest:
        raise BadInput("out", store.url(), f"holds {what}; name another place, or remove it first")
