"""Files that programs send before the batch that names them, each under its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from jobs.board.temporary_folder import TemporaryFolder
from jobs.intake.named_files import MOST_FILES
from render.errors import BadInput

_SENT = "chorale-sent-"
_PLACE = re.compile(rf"[^\s'\"]*{_SENT}\w+/batch-\w+/([0-9]{{1,6}})/[^\s'\":]*")
_KEPT_S = 3600.0
_MOST_BYTES = 16 << 30
"""Of all files together; the oldest ones make room."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ODD = re.compile(r"[^\w.-]+")


def as_named(text: str, names: Mapping[str, str]) -> str:
    """A sentence with the names that a batch has for its files (see `SentFiles.named`) in place of their
    paths, which may be cut off."""
    known = list(names)

    def own(found: re.Match[str]) -> str:
        # A text of the user may look like such a path.
        number = int(found[1])
        return known[number] if number < len(known) else found[0]

    return _PLACE.sub(own, text)


def check_digest(digest: str) -> None:
    """Raise `BadInput` for what is no SHA-256 in hexadecimal."""
    if not _DIGEST.fullmatch(digest):
        raise BadInput("digest", digest[:80], "is not a SHA-256 in 64 hexadecimal digits")


@dataclass
class SentFiles:
    """Some files for an hour, in a temporary folder that goes with the process. Opens nothing until used."""

    _folder: TemporaryFolder = field(default_factory=lambda: TemporaryFolder(_SENT))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def take(self, digest: str, body: AsyncIterator[bytes], limit: int) -> int:
        """Keep a file as it arrives; returns its bytes.

        Raises `BadInput` where its digest is another, and `HTTPException` 413 for one of more than `limit`
        bytes.
        """
        check_digest(digest)
        found, size = hashlib.sha256(), 0
        home = self._folder.path()
        part = home / f".part-{os.urandom(8).hex()}"
        try:
            with part.open("wb") as file:
                async for chunk in body:
                    size += len(chunk)
                    if size > limit:
                        raise HTTPException(413, f"the file is larger than {limit // 2**20} MiB")
                    found.update(chunk)
                    await run_in_threadpool(file.write, chunk)
            if found.hexdigest() != digest:
                fix = f"is not the SHA-256 of the {size} bytes that arrived; send the file again"
                raise BadInput("digest", digest, fix)
            part.replace(home / digest)
        finally:
            part.unlink(missing_ok=True)
        await run_in_threadpool(self._drop_old)
        return size

    def size(self, digest: str) -> int | None:
        """Bytes of a file that is here, and stays for another hour; None for one that is not."""
        check_digest(digest)
        path = self._folder.path() / digest
        try:
            os.utime(path)
            return path.stat().st_size
        except OSError:
            return None

    @contextmanager
    def named(self, text: str) -> Iterator[Mapping[str, str]]:
        """The paths of sent files by the names that a batch has for them, until the block ends.

        `text` is a JSON object of names and digests. Raises `BadInput`.
        """
        names = _parsed(text)
        if not names:
            yield {}
            return
        with tempfile.TemporaryDirectory(prefix="batch-", dir=self._folder.path()) as folder:
            places = ((Path(folder) / str(number), each) for number, each in enumerate(names.items()))
            yield {name: self._linked(place, name, digest) for place, (name, digest) in places}

    def _linked(self, folder: Path, name: str, digest: str) -> str:
        """A file under its own name, which may mean something: a learned word is called as its file."""
        own = _ODD.sub("_", name.replace("\\", "/").rpartition("/")[2])[-100:].lstrip(".") or "file"
        path = folder / own
        folder.mkdir()
        try:
            os.link(self._folder.path() / digest, path)
        except OSError as exc:
            fix = "was not sent, or more than an hour ago; send it to /api/v1/files first"
            raise BadInput("files", name[:200], fix) from exc
        return str(path)

    def _drop_old(self) -> None:
        """Delete what nobody has asked for lately, and what is too much."""
        home = self._folder.known()
        if home is None:
            return
        with self._lock:
            known = sorted(
                (
                    (found.stat().st_mtime, found.stat().st_size, found)
                    for found in home.iterdir()
                    if _DIGEST.fullmatch(found.name)
                ),
                reverse=True,
            )
            kept = 0
            for moment, size, path in known:
                kept += size
                if time.time() - moment > _KEPT_S or kept > _MOST_BYTES:
                    path.unlink(missing_ok=True)


def _parsed(text: str) -> dict[str, str]:
    if not text.strip():
        return {}
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadInput("files", text[:80], 'is not valid JSON; use {"NAME": "SHA-256"}') from exc
    if not isinstance(names, dict) or not all(isinstance(each, str) for each in names.values()):
        raise BadInput("files", text[:80], 'is not names and digests; use {"NAME": "SHA-256"}')
    if len(names) > MOST_FILES:
        raise BadInput("files", len(names), f"are too many; use at most {MOST_FILES:,}")
    for digest in names.values():
        check_digest(digest)
    return names
