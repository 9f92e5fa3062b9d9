"""The object store's protocol: whole files by key. Every backend passes the same contract tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from infra.errors import StorePermanent


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file in a listing."""

    key: str
    size: int
    """Bytes."""
    modified: float
    """Seconds since the epoch, by the store's clock."""


class Store(Protocol):
    """Keys are relative paths with forward slashes. Raises errors of `infra.errors` only.

    All methods may be called from several threads at once.
    """

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        """Store `data` whole or not at all, replacing what was there.

        `immutable` promises that this key will never hold other bytes, so that browsers may keep it.
        """
        ...

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        """Store `data` unless the key exists with other bytes; False, and nothing changed, when it does.

        The very same bytes count as stored: they may be ours, of a try whose answer was lost.
        """
        ...

    def get(self, key: str) -> bytes:
        """The whole file; raises `StoreMissing`."""
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Bytes `start` to `start + length`, fewer where the file ends before; raises `StoreMissing`."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the file, None when it is not there."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """All files whose keys start with `prefix`, sorted by key."""
        ...

    def folders(self) -> Iterator[str]:
        """The first parts of all keys that have more than one, sorted; without listing what is in them."""
        ...

    def delete(self, key: str) -> None:
        """Remove the file; harmless when it is not there."""
        ...

    def presign(self, key: str, seconds: int) -> str | None:
        """A URL that anybody may GET the file by for so long; None where the store has no such thing."""
        ...

    def url(self, key: str = "") -> str:
        """Where a file is, for people: `s3://bucket/prefix/key`, or a path."""
        ...

    def within(self, folder: str) -> Store:
        """The store of all keys below `folder/`, by what follows it."""
        ...


def checked_key(key: str) -> str:
    """The key, if it names a file below the store; raises `StorePermanent`."""
    if not key or key.startswith("/") or ".." in PurePosixPath(key).parts:
        raise StorePermanent(f"key: {key!r} does not name a file below the store; use a relative path")
    return key
