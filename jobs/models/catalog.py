"""The models of a farm, in its store: a record for each name, and the files' bytes under their SHA-256.

A record says which files make up the model; a name points to one record. Files are stored in pieces, so that
no process has to hold one in memory, and files that several models share are stored once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, validate_call

from infra.errors import StoreMissing
from infra.store.base import Store
from render.errors import BadInput, ModelNotUsable
from render.models.base_folder import base_files, join_base
from render.models.folder import model_files, read_model_info
from render.models.packaged import packaged_models
from render.safetensors_file import file_sha256

MODELS = "models"
"""Folder of the farm's store, and of a node's home."""
BASE = "base"
"""Folder of a stored model for what completes its single file."""
PIECE = 64 * 2**20
"""Bytes of a file in one object of the store."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_POINTED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})@(?P<digest>[0-9a-f]{16})")
_log = logging.getLogger(__name__)
_DAMAGED = "has a damaged record in the farm's store; add the model again with --replace"
_JSON, _BYTES = "application/json", "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of a model."""

    path: str
    """Below the model's folder, with forward slashes."""
    bytes: int
    sha256: str

    def pieces(self) -> Iterator[tuple[str, int]]:
        """(key below the store's `MODELS`, bytes) of each piece, in order."""
        for number, start in enumerate(range(0, max(1, self.bytes), PIECE)):
            yield f"files/{self.sha256}/{number:06}", min(PIECE, self.bytes - start)


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model of the farm."""

    name: str
    digest: str
    """As in the identity of its images (`ModelInfo.digest`)."""
    family: str
    source: str
    """What it was added from."""
    by: str
    added: float
    """Seconds since the epoch."""
    is_file: bool
    """A single file, and not a folder."""
    files: tuple[StoredFile, ...]
    has_base: bool = False
    """A single file, the first one, and below `BASE` the folder that completes it."""

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file.bytes for file in self.files)

    @property
    def pointed_name(self) -> str:
        """Stands for these files whatever the name is given to later: what a job stores."""
        return f"{self.name}@{self.digest[:16]}"


class ModelCatalog:
    """Adds, finds and removes models. Raises errors of the store, and `BadInput`."""

    def __init__(self, images: Store) -> None:
        self._store = images.within(MODELS)

    def add(
        self,
        name: str,
        path: Path,
        source: str,
        by: str,
        replace: bool = False,
        base: Path | None = None,
    ) -> StoredModel:
        """Store a model that lies on this machine; files that the store has are not sent again.

        `base` is the folder that completes a single file.
        Raises `BadInput` for a model that cannot be used, and for a name that is taken by another model,
        unless it is to be replaced.
        """
        check_name(name)
        info = read_model_info(path if base is None else join_base(path.absolute(), base.absolute()))
        places = _places(path, base)
        files = tuple(
            StoredFile(path=place, bytes=file.stat().st_size, sha256=file_sha256(file))
            for place, file in places.items()
        )
        model = StoredModel(
            name=name,
            digest=info.digest,
            family=info.family,
            source=source,
            by=by,
            added=time.time(),
            is_file=path.is_file(),
            files=files,
            has_base=base is not None,
        )
        known = self._whole_record(name)
        if known is not None and known.digest != model.digest and not replace:
            fix = f"is the name of another model ({known.digest[:16]}); choose a name, or add --replace"
            raise BadInput("name", name, fix)
        for file in files:
            self._send(places[file.path], file)
        self._put(f"records/{model.digest[:16]}.json", asdict(model))
        # Last: a name always points to a model that is whole.
        self._put(f"names/{name}.json", {"digest": model.digest[:16]})
        return model

    def find(self, name: str) -> StoredModel | None:
        """The model of a name, or of a name with its digest; None if there is none.

        Raises `ModelNotUsable` for a damaged record.
        """
        if (pointed := _POINTED.fullmatch(name)) is not None:
            record = self._record(pointed["digest"])
            return None if record is None else _renamed(record, pointed["name"])
        if not _NAME.fullmatch(name):
            return None
        pointer = self._json(f"names/{name}.json")
        record = None if pointer is None else self._record(str(pointer.get("digest")))
        return None if record is None else _renamed(record, name)

    def models(self) -> list[StoredModel]:
        """All models, by name, but for those whose records are damaged."""
        names = [entry.key[len("names/") : -len(".json")] for entry in self._store.entries("names/")]
        return [model for name in names if (model := self._whole_record(name)) is not None]

    def _whole_record(self, name: str) -> StoredModel | None:
        """As `find`, but a damaged record is logged, and counts as none."""
        try:
            return self.find(name)
        except ModelNotUsable as exc:
            _log.warning("%s: %s", name, exc)
            return None

    def forget(self, model: StoredModel, stored: Iterable[StoredModel]) -> None:
        """Remove a name, and what is known of its model unless another name stands for it too.

        `stored` are all models, as `models` finds them: reading them takes a request for each. No submission
        finds the model then; `delete_files` frees the room.
        """
        self._store.delete(f"names/{model.name}.json")
        if not any(other.digest == model.digest and other.name != model.name for other in stored):
            self._store.delete(f"records/{model.digest[:16]}.json")

    def delete_files(self, model: StoredModel) -> int:
        """Delete the files of a forgotten model that no other one has; returns the bytes that were freed."""
        shared = {file.sha256 for other in self.models() for file in other.files}
        freed = 0
        for file in model.files:
            if file.sha256 not in shared:
                freed += file.bytes
                for key, _ in file.pieces():
                    self._store.delete(key)
        return freed

    def verify(self, model: StoredModel) -> list[str]:
        """What is wrong with a model's files in the store, one sentence each; reads all of them."""
        problems = []
        for file in model.files:
            digest = hashlib.sha256()
            try:
                for data in self.read(file):
                    digest.update(data)
            except StoreMissing:
                problems.append(f"{file.path} is not whole in the store; add the model again")
                continue
            if digest.hexdigest() != file.sha256:
                problems.append(
                    f"{file.path} has other bytes in the store; remove the model and add it again"
                )
        return problems

    def read(self, file: StoredFile) -> Iterator[bytes]:
        """The bytes of a file, piece by piece; raises `StoreMissing`."""
        for key, _ in file.pieces():
            yield self._store.get(key)

    def read_start(self, file: StoredFile, length: int) -> bytes:
        """The first bytes of a file; raises `StoreMissing`."""
        found = b""
        for key, size in file.pieces():
            if len(found) >= length:
                break
            found += self._store.get_range(key, 0, min(size, length - len(found)))
        return found

    def _send(self, path: Path, file: StoredFile) -> None:
        with path.open("rb") as stream:
            for key, size in file.pieces():
                data = stream.read(size)
                if self._store.size(key) != size:
                    self._store.put(key, data, _BYTES, immutable=True)

    def _record(self, digest: str) -> StoredModel | None:
        document = self._json(f"records/{digest}.json")
        return None if document is None else _parsed_record(document, digest)

    def _put(self, key: str, document: dict[str, Any]) -> None:
        self._store.put(key, json.dumps(document, sort_keys=True).encode(), _JSON)

    def _json(self, key: str) -> dict[str, Any] | None:
        try:
            document = json.loads(self._store.get(key))
        except StoreMissing:
            return None
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise ModelNotUsable("model", key, _DAMAGED)
        return document


def _parsed_record(document: dict[str, Any], digest: str) -> StoredModel:
    """Nodes write files by a record's paths: whoever can write to the store must not choose other places.

    Raises `ModelNotUsable`.
    """
    try:
        files = tuple(_file_record(**file) for file in document["files"])
        model = _model_record(**document | {"files": files})
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelNotUsable("model", digest[:80], _DAMAGED) from exc
    if not model.digest.startswith(digest):
        raise ModelNotUsable("model", digest[:80], _DAMAGED)
    return model


def _check_path(path: str) -> str:
    if "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("is no path below a folder")
    return path


_Path = Annotated[str, AfterValidator(_check_path)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@validate_call
def _file_record(*, path: _Path, bytes: NonNegativeInt, sha256: _Sha256) -> StoredFile:
    return StoredFile(path=path, bytes=bytes, sha256=sha256)


@validate_call
def _model_record(
    *,
    name: str,
    digest: _Sha256,
    family: str,
    source: str,
    by: str,
    added: float,
    is_file: bool,
    files: Annotated[tuple[StoredFile, ...], Field(min_length=1)],
    has_base: bool = False,
) -> StoredModel:
    return StoredModel(**locals())


def _places(path: Path, base: Path | None) -> dict[str, Path]:
    """The files of a model by their paths in the store."""
    if base is not None:
        parts = base_files(path.absolute(), base.absolute())
        below = {f"{BASE}/{file.relative_to(base.absolute()).as_posix()}": file for file in parts}
        return {path.name: path} | below
    folder = path.parent if path.is_file() else path
    return {file.relative_to(folder).as_posix(): file for file in model_files(path)}


def may_be_name(name: str) -> bool:
    """Whether a model could have this name, with or without its digest."""
    return (_NAME.fullmatch(name) or _POINTED.fullmatch(name)) is not None


def is_pointed(name: str) -> bool:
    """Whether it is a name with the digest of its model."""
    return _POINTED.fullmatch(name) is not None


def check_name(name: str) -> None:
    """Raise `BadInput` for a name that a model cannot have."""
    if not _NAME.fullmatch(name):
        fix = "is no name for a model; use letters, digits, dots, underscores and hyphens, 64 at most"
        raise BadInput("name", name[:80], fix)
    if name in packaged_models():
        raise BadInput("name", name, "is a model that the package brings; use another name")


def _renamed(model: StoredModel, name: str) -> StoredModel:
    return StoredModel(**{**vars(model), "name": name})
