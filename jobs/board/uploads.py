"""Uploaded batch files that wait for their form: a browser cannot send a file again by itself."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

_MAX_KEPT = 16
_KEPT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One file, under the name that the browser gave."""

    token: str
    name: str
    path: Path
    moment: float


@dataclass
class Uploads:
    """Some files for an hour, in a temporary folder that goes with the process. Opens nothing until used."""

    _kept: dict[str, Upload] = field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, name: str, file: BinaryIO) -> Upload:
        """Keep a file; the oldest ones make room for it."""
        token = secrets.token_urlsafe(16)
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="chorale-uploads-")
            folder = Path(self._folder.name) / token
            folder.mkdir()
        path = folder / f"batch{Path(name).suffix.lower()}"
        with path.open("wb") as target:
            shutil.copyfileobj(file, target)
        upload = Upload(token=token, name=name, path=path, moment=time.monotonic())
        with self._lock:
            self._kept[token] = upload
            self._drop_old()
        return upload

    def get(self, token: str) -> Upload | None:
        """The file of a token; None if it is gone."""
        with self._lock:
            self._drop_old()
            return self._kept.get(token)

    def drop(self, upload: Upload) -> None:
        """Remove a file that is not needed any more."""
        with self._lock:
            if self._kept.pop(upload.token, None) is not None:
                shutil.rmtree(upload.path.parent, ignore_errors=True)

    def _drop_old(self) -> None:
        before = time.monotonic() - _KEPT_S
        old = [each for each in self._kept.values() if each.moment < before]
        rest = sorted(set(self._kept.values()) - set(old), key=lambda each: each.moment)
        for upload in [*old, *rest[: max(0, len(rest) - _MAX_KEPT)]]:
            del self._kept[upload.token]
            shutil.rmtree(upload.path.parent, ignore_errors=True)
