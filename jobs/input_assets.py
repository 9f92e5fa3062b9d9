"""Pictures to start from, on their way to the ranks: by the farm's store, under their digest."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from infra.store.base import Store
from jobs.db.submission import BatchItem
from render.errors import BadInput
from render.spec import Spec
from render.spec.init_image import InitImage

INPUTS = "inputs"
"""Folder of the farm's store, and of a node's home, that holds them."""


def upload_inputs(asked: Iterable[BatchItem], images: Store) -> Iterator[BatchItem]:
    """Pass the images on, with the pictures that they start from stored before they are queued."""
    kept: set[str] = set()
    for each in asked:
        init = each.spec.init
        if init is not None and init.digest not in kept:
            if images.size(_key(init)) is None:
                images.put(_key(init), _bytes(init), "application/octet-stream", immutable=True)
            kept.add(init.digest)
        yield each


def download_input(spec: Spec, images: Store, home: Path) -> Spec:
    """The same spec, with the picture that it starts from at its place on this node."""
    if spec.init is None:
        return spec
    path = home / _key(spec.init)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{uuid.uuid4().hex}")
        part.write_bytes(images.get(_key(spec.init)))
        os.replace(part, path)
    return spec.with_changes(init=replace(spec.init, path=str(path)))


def _key(init: InitImage) -> str:
    return f"{INPUTS}/{init.digest}"


def _bytes(init: InitImage) -> bytes:
    try:
        return Path(init.path).read_bytes()
    except OSError as exc:
        raise BadInput("init", init.path, f"cannot be read ({exc.strerror}); check the path") from exc
