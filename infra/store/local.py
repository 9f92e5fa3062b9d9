"""A folder as an object store: temporary file, fsync, atomic rename."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import StoreDenied, StoreError, StoreMissing, StorePermanent, StoreRetryable

_PART = ".part-"
"""Begins the names of files that are being written; a crash may leave some, and they are never listed."""


_PASSING = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EINTR", "EAGAIN", "ETIMEDOUT", "EROFS", "ESTALE", "ENOTCONN", "EHOSTDOWN", "ENODEV")
)
"""What a shared folder says while its server is away, or after its disk was mounted for reading only."""


class LocalStore:
    """The `Store` protocol over a folder. The folder is made at the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"LocalStore({str(self.folder)!r})"

    def put(self, key: str, data: bytes, content_type: str) -> None:
        with _translated(key):
            path = self._path(key)
            os.replace(self._written(path, data), path)

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        with _translated(key):
            path = self._path(key)
            part = self._written(path, data)
            try:
                # A hard link fails where the name exists, which a rename would silently replace.
                os.link(part, path)
            except FileExistsError:
                return False
            finally:
                part.unlink()
            return True

    def get(self, key: str) -> bytes:
        with _translated(key):
            return self._path(key).read_bytes()

    def size(self, key: str) -> int | None:
        with _translated(key):
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def keys(self, prefix: str = "") -> Iterator[str]:
        found = (
            path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(_PART)
        )
        names = (path.relative_to(self.folder).as_posix() for path in found)
        yield from sorted(name for name in names if name.startswith(prefix))

    def delete(self, key: str) -> None:
        with _translated(key):
            path = self._path(key)
            path.unlink(missing_ok=True)
            # Folders are no more than parts of keys here: an empty one goes, up to the store's own.
            for folder in path.relative_to(self.folder).parents[:-1]:
                try:
                    (self.folder / folder).rmdir()
                except OSError:
                    break

    def _path(self, key: str) -> Path:
        parts = Path(key).parts
        if not parts or Path(key).is_absolute() or ".." in parts:
            raise StorePermanent(f"key: {key!r} does not name a file below the store; use a relative path")
        return self.folder / key

    def _written(self, path: Path, data: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{_PART}{uuid.uuid4().hex}")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return part


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """The one place where this backend's errors become ours."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as exc:
        raise StoreMissing(f"{key} is not in the store") from exc
    except PermissionError as exc:
        raise StoreDenied(f"{key}: the store's folder refuses access; check its owner and mode") from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorePermanent(f"{key}: the disk is full; free some space and render again") from exc
        if exc.errno in _PASSING:
            raise StoreRetryable(f"{key}: {exc.strerror}; try again") from exc
        raise StorePermanent(f"{key}: {exc.strerror}") from exc
