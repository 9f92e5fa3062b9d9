"""A folder as an object store: temporary file, fsync, atomic rename."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import StoreDenied, StoreError, StoreMissing, StorePermanent, StoreRetryable
from infra.store.base import Entry, checked_key
from infra.store.parts import PART, part_of

_TRIES = 3
"""Of a write whose folder or part another process has removed."""

_TEMPORARY = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EINTR", "EAGAIN", "ETIMEDOUT", "EROFS", "ESTALE", "ENOTCONN", "EHOSTDOWN", "ENODEV")
)
"""Errors of a shared folder while its server is unreachable, or while its disk is mounted read-only."""


class LocalStore:
    """The `Store` protocol over a folder. The folder is made at the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"LocalStore({str(self.folder)!r})"

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        with _translated(key):
            _place(self._path(key), data, os.replace)

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        with _translated(key):
            path = self._path(key)
            try:
                # A hard link fails where the name exists, which a rename would silently replace.
                _place(path, data, _link)
            except FileExistsError:
                return path.read_bytes() == data
            return True

    def get(self, key: str) -> bytes:
        with _translated(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with _translated(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def size(self, key: str) -> int | None:
        with _translated(key):
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        # From the deepest folder that the prefix names: the store's root may hold very many files.
        top = self.folder / prefix.rpartition("/")[0]
        names = (path.relative_to(self.folder).as_posix() for path in top.rglob("*"))
        for key in sorted(name for name in names if name.startswith(prefix)):
            path = self.folder / key
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                if stat.S_ISREG(state.st_mode) and not path.name.startswith(PART):
                    yield Entry(key=key, size=state.st_size, modified=state.st_mtime)

    def folders(self) -> Iterator[str]:
        with _translated("listing"):
            found = self.folder.iterdir() if self.folder.is_dir() else iter(())
            yield from sorted(path.name for path in found if path.is_dir())

    def delete(self, key: str) -> None:
        with _translated(key):
            path = self._path(key)
            path.unlink(missing_ok=True)
            # Folders are only parts of keys: empty ones are removed, up to the store's own folder.
            for folder in path.relative_to(self.folder).parents[:-1]:
                try:
                    (self.folder / folder).rmdir()
                except OSError:
                    break

    def presign(self, key: str, seconds: int) -> str | None:
        return None

    def url(self, key: str = "") -> str:
        return str(self.folder / key)

    def within(self, folder: str) -> LocalStore:
        return LocalStore(self._path(folder))

    def _path(self, key: str) -> Path:
        return self.folder / checked_key(key)


def _place(path: Path, data: bytes, place: Callable[[Path, Path], None]) -> None:
    """Write a file under a name of its own, then `place` it at its path. Makes the folder if it is missing.

    Another process may take away the folder, if this was to be the first file in it, or the part, if its
    clock is far ahead: then all begins anew.
    """
    for left in reversed(range(_TRIES)):
        part = part_of(path)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _write(part, data)
            place(part, path)
            return
        except FileNotFoundError:
            if left == 0:
                raise
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _write(part: Path, data: bytes) -> None:
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(part: Path, path: Path) -> None:
    os.link(part, path)
    part.unlink(missing_ok=True)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """The one place where this backend's errors are translated."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as exc:
        raise StoreMissing(f"{key} is not in the store") from exc
    except PermissionError as exc:
        raise StoreDenied(f"{key}: no permission in the store's folder; check its owner and mode") from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorePermanent(
                f"{key}: the disk is full or has no inodes left; free some and render again"
            ) from exc
        if exc.errno in _TEMPORARY:
            raise StoreRetryable(f"{key}: {exc.strerror}; try again") from exc
        raise StorePermanent(f"{key}: {exc.strerror}") from exc
