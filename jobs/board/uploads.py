"""Uploaded batch files that wait for their form: a browser cannot send a file again by itself."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from jobs.board.temporary_folder import TemporaryFolder

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
    _folder: TemporaryFolder = field(default_factory=lambda: TemporaryFolder("chorale-uploads-"))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, name: str, file: BinaryIO) -> Upload:
        """Keep a file; the oldest ones make room for it. Raises `OSError`, and keeps nothing then."""
        token = secrets.token_urlsafe(16)
        folder = self._folder.path() / token
        folder.mkdir()
        path = folder / f"batch{Path(name).suffix.lower()}"
        try:
            with path.open("wb") as target:
                shutil.copyfileobj(file, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        upload = Upload(token=token, name=name, path=path, moment=time.monotonic())
        with self._lock:
            self._kept[token] = upload
            self._drop_old()
        return upload

    def get(self, token: str) -> Upload | None:
        """The file of a token; None if it is gone."""
        with self._lock:
            self._drop_old()
            upload = self._kept.get(token)
        return upload if upload is not None and upload.path.exists() else None

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
