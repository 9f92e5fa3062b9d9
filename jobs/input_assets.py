"""Input files of jobs (images, LoRA, words, enlargers): in the store, downloaded by the nodes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from infra.errors import StoreMissing
from infra.store.base import Store
from infra.store.parts import part_of
from jobs.db.submission import BatchItem
from render.errors import BadInput
from render.spec import Spec
from render.spec.control import Control
from render.spec.embedding import Embedding
from render.spec.enlarger import EnlargerFile
from render.spec.init_image import InitImage
from render.spec.lora import Lora
from render.spec.reference import ReferencePicture

Asset = TypeVar("Asset", InitImage, Control, ReferencePicture, Lora, Embedding, EnlargerFile)
INPUTS = "inputs"
"""Folder of the inputs, in the farm's store and in a node's home."""


def upload_inputs(items: Iterable[BatchItem], images: Store) -> None:
    """Store the items' files that the store lacks: they have to be there before the jobs are.

    To be called by `jobs.db.submission.insert_batch`, which keeps `chorale gc` from deleting what was found.
    """
    uploaded: set[str] = set()
    for item in items:
        for asset in item.spec.assets:
            if asset.digest in uploaded:
                continue
            if images.size(_key(asset)) is None:
                images.put(_key(asset), _bytes(asset), "application/octet-stream", immutable=True)
            uploaded.add(asset.digest)


def check_inputs(specs: Iterable[Spec], images: Store) -> None:
    """Raise `BadInput` if the store lacks a file that one of these specs needs.

    `chorale gc` deletes files of jobs that are done, so another job of the same file may find it gone.
    """
    known: set[str] = set()
    for spec in specs:
        for asset in spec.assets:
            if asset.digest not in known and images.size(_key(asset)) is None:
                fix = "is not in the farm's store any more; submit the image again from its file"
                raise BadInput(asset.part_of, asset.path, fix)
            known.add(asset.digest)


def download_input(spec: Spec, images: Store, home: Path) -> Spec:
    """The spec with the paths of its files on this node; downloads those that are missing.

    Raises `BadInput` for a file that the store does not have: waiting will not bring it back.
    """
    changes: dict[str, Any] = {}
    for field, image in spec.images.items():
        changes[field] = _downloaded(image, images, home)
    if spec.lora:
        changes["lora"] = tuple(_downloaded(lora, images, home) for lora in spec.lora)
    if spec.embedding:
        changes["embedding"] = tuple(_downloaded(each, images, home) for each in spec.embedding)
    if spec.control:
        changes["control"] = tuple(_downloaded(each, images, home) for each in spec.control)
    if spec.reference:
        changes["reference"] = tuple(_downloaded(each, images, home) for each in spec.reference)
    if spec.enlarger is not None:
        changes["enlarger"] = _downloaded(spec.enlarger, images, home)
    return spec.with_changes(**changes) if changes else spec


def _downloaded(asset: Asset, images: Store, home: Path) -> Asset:
    path = home / _key(asset)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            data = images.get(_key(asset))
        except StoreMissing as exc:
            fix = f"is not in the farm's store any more ({_key(asset)}); submit the image again"
            raise BadInput(asset.part_of, asset.path, fix) from exc
        part = part_of(path)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return asset.with_changes(path=str(path))


def _key(asset: InitImage | Lora | Embedding | EnlargerFile) -> str:
    return f"{INPUTS}/{asset.digest}"


def _bytes(asset: InitImage | Lora | Embedding | EnlargerFile) -> bytes:
    try:
        return Path(asset.path).read_bytes()
    except OSError as exc:
        raise BadInput(asset.part_of, asset.path, f"cannot be read ({exc.strerror}); check the path") from exc
