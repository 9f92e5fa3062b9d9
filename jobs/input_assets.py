"""Init images of jobs: uploaded to the farm's store under their digest, downloaded by the nodes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from infra.store.base import Store
from jobs.db.submission import BatchItem
from render.errors import BadInput
from render.spec import Spec
from render.spec.init_image import InitImage

INPUTS = "inputs"
"""Folder of the inputs, in the farm's store and in a node's home."""


def upload_inputs(items: Iterable[BatchItem], images: Store) -> Iterator[BatchItem]:
    """Yield the items, each once its init image is in the store: it has to be there before the job is."""
    uploaded: set[str] = set()
    for item in items:
        init = item.spec.init
        if init is not None and init.digest not in uploaded:
            if images.size(_key(init)) is None:
                images.put(_key(init), _bytes(init), "application/octet-stream", immutable=True)
            uploaded.add(init.digest)
        yield item


def download_input(spec: Spec, images: Store, home: Path) -> Spec:
    """The spec with the path of its init image on this node; downloads the image if it is missing."""
    if spec.init is None:
        return spec
    path = home / _key(spec.init)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{uuid.uuid4().hex}")
        part.write_bytes(images.get(_key(spec.init)))
        os.replace(part, path)
    return spec.with_changes(init=spec.init.with_changes(path=str(path)))


def _key(init: InitImage) -> str:
    return f"{INPUTS}/{init.digest}"


def _bytes(init: InitImage) -> bytes:
    try:
        return Path(init.path).read_bytes()
    except OSError as exc:
        raise BadInput("init", init.path, f"cannot be read ({exc.strerror}); check the path") from exc
