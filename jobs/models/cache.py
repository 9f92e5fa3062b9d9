"""The models of a farm on one node: each is fetched once, whoever asks, into a folder of limited size.

Locks are `flock`s on files beside the models, so they end with the process that holds them. A process that
uses a model holds its lock shared until it ends; whoever fetches or deletes a model holds it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import StoreMissing
from jobs.formatting import size as shown_size
from jobs.models.catalog import BASE, ModelCatalog, StoredFile, StoredModel
from render.errors import ModelNotUsable
from render.models.base_folder import join_base
from render.safetensors_file import LARGEST_HEADER, remember_sha256

_NEW = ".new-"
_GGUF_HEADER = 32 * 2**20
"""Bytes; its length stands nowhere. Those of networks of 10,000 tensors are below 2 MiB."""


class ModelCache:
    """A folder of models by digest. `limit` is in bytes and counts whole models only."""

    def __init__(self, folder: Path, catalog: ModelCatalog, limit: float) -> None:
        self.folder, self._catalog, self._limit = folder, catalog, limit
        self._held: dict[str, int] = {}
        """The locks of models in use: open files by digest."""

    def whole(self, model: StoredModel) -> Path:
        """The model's path on this node, fetched if it is not here; kept until this process ends.

        Raises `ModelNotUsable` for a model that is not whole in the store or larger than the cache, and
        errors of the store.
        """
        target = self.folder / model.digest
        if model.digest not in self._held:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held[model.digest] = self._hold(model, target)
        os.utime(target)
        return _path_of(model, target)

    def headers(self, model: StoredModel) -> Path:
        """The same path without weights: what is needed to plan. Files have their size and no contents."""
        target = self.folder / "headers" / model.digest
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _new_folder(target) as folder:
                for file in model.files:
                    self._fetch_header(model, file, folder / file.path)
        for file in model.files:
            remember_sha256(target / file.path, file.sha256)
        return _path_of(model, target)

    def _hold(self, model: StoredModel, target: Path) -> int:
        """Lock a model that is here, or fetch it first; returns the open file that has the lock."""
        lock = os.open(self.folder / f"{model.digest}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if target.is_dir():
                    return lock
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not target.is_dir():
                    self._fetch(model, target)
        except BaseException:
            os.close(lock)
            raise

    def _fetch(self, model: StoredModel, target: Path) -> None:
        """One at a time, so that the room that was made for a model is there for it."""
        with _locked(self.folder / "cache.lock"):
            for left in self.folder.glob(f"{_NEW}*"):
                shutil.rmtree(left, ignore_errors=True)
            self._make_room(model)
            with _new_folder(target) as folder:
                for file in model.files:
                    self._fetch_file(model, file, folder / file.path)

    def _make_room(self, model: StoredModel) -> None:
        if model.bytes > self._limit:
            fix = (
                f"has {shown_size(model.bytes)}, and this node's cache {shown_size(self._limit)}; raise "
                "CHORALE_MODEL_CACHE_GIB"
            )
            raise ModelNotUsable("model", model.name, fix)
        models = sorted(self.models(), key=lambda folder: folder.stat().st_mtime)
        sizes = {folder: _bytes_of(folder) for folder in models}
        for folder in models:
            if sum(sizes.values()) + model.bytes <= self._limit:
                return
            if self._delete(folder):
                del sizes[folder]
        if sum(sizes.values()) + model.bytes > self._limit:
            fix = (
                f"needs {shown_size(model.bytes)} in this node's cache of {shown_size(self._limit)}, which "
                "other jobs are using; raise CHORALE_MODEL_CACHE_GIB"
            )
            raise ModelNotUsable("model", model.name, fix)

    def models(self) -> list[Path]:
        """The folders of whole models."""
        if not self.folder.is_dir():
            return []
        return [each for each in self.folder.iterdir() if each.is_dir() and len(each.name) == 64]

    def _delete(self, folder: Path) -> bool:
        """Delete a model unless a process uses it."""
        with (
            contextlib.suppress(BlockingIOError),
            _locked(folder.with_name(f"{folder.name}.lock"), wait=False),
        ):
            shutil.rmtree(folder)
            return True
        return False

    def _fetch_file(self, model: StoredModel, file: StoredFile, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with _whole_in_store(model), path.open("wb") as stream:
            for data in self._catalog.read(file):
                digest.update(data)
                stream.write(data)
        if digest.hexdigest() != file.sha256:
            fix = f"has other bytes in the farm's store ({file.path}); remove it and add it again"
            raise ModelNotUsable("model", model.name, fix)

    def _fetch_header(self, model: StoredModel, file: StoredFile, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _whole_in_store(model):
            if path.suffix == ".gguf":
                _write_start(path, self._catalog.read_start(file, _GGUF_HEADER), file.bytes)
                return
            if path.suffix != ".safetensors":
                path.write_bytes(self._catalog.read_start(file, file.bytes))
                return
            (length,) = struct.unpack("<Q", self._catalog.read_start(file, 8))
            start = self._catalog.read_start(file, 8 + min(length, LARGEST_HEADER))
        _write_start(path, start, file.bytes)


def _write_start(path: Path, start: bytes, size: int) -> None:
    """A file of a size in bytes of which only the start takes room."""
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(size)


def _path_of(model: StoredModel, folder: Path) -> Path:
    if model.has_base:
        return join_base(folder / model.files[0].path, folder / BASE)
    return folder / model.files[0].path if model.is_file else folder


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def _whole_in_store(model: StoredModel) -> Iterator[None]:
    try:
        yield
    except StoreMissing as exc:
        fix = "is not whole in the farm's store; add it again with chorale model add"
        raise ModelNotUsable("model", model.name, fix) from exc


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Raises `BlockingIOError` if another process has the lock and this one is not to wait."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(lock)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that appears as `target` when it is whole."""
    folder = Path(tempfile.mkdtemp(prefix=_NEW, dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        with contextlib.suppress(OSError):  # it is there already
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
