"""Init images, masks and LoRA of jobs: in the farm's store under their digest, downloaded by the nodes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from infra.store.base import Store
from jobs.db.submission import BatchItem
from render.errors import BadInput
from render.spec import Spec
from render.spec.init_image import InitImage
from render.spec.lora import Lora

Asset = TypeVar("Asset", InitImage, Lora)
INPUTS = "inputs"
"""Folder of the inputs, in the farm's store and in a node's home."""


def upload_inputs(items: Iterable[BatchItem], images: Store) -> Iterator[BatchItem]:
    """Yield the items, each once its files are in the store: they have to be there before the job is."""
    uploaded: set[str] = set()
    for item in items:
        for asset in _assets(item.spec):
            if asset.digest in uploaded:
                continue
            if images.size(_key(asset)) is None:
                images.put(_key(asset), _bytes(asset), "application/octet-stream", immutable=True)
            uploaded.add(asset.digest)
        yield item


def download_input(spec: Spec, images: Store, home: Path) -> Spec:
    """The spec with the paths of its files on this node; downloads those that are missing."""
    changes: dict[str, Any] = {}
    for field, image in spec.images.items():
        changes[field] = _downloaded(image, images, home)
    if spec.lora:
        changes["lora"] = tuple(_downloaded(lora, images, home) for lora in spec.lora)
    return spec.with_changes(**changes) if changes else spec


def _downloaded(asset: Asset, images: Store, home: Path) -> Asset:
    path = home / _key(asset)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{uuid.uuid4().hex}")
        part.write_bytes(images.get(_key(asset)))
        os.replace(part, path)
    return asset.with_changes(path=str(path))


def _assets(spec: Spec) -> list[InitImage | Lora]:
    return [*spec.images.values(), *spec.lora]


def _key(asset: InitImage | Lora) -> str:
    return f"{INPUTS}/{asset.digest}"


def _bytes(asset: InitImage | Lora) -> bytes:
    try:
        return Path(asset.path).read_bytes()
    except OSError as exc:
        raise BadInput(asset.part_of, asset.path, f"cannot be read ({exc.strerror}); check the path") from exc
