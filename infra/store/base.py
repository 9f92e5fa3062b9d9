"""The object store's protocol: whole files by key. Every backend passes the same contract tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Store(Protocol):
    """Keys are relative paths with forward slashes. Raises errors of `infra.errors` only."""

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store `data` whole or not at all, replacing what was there."""
        ...

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        """Store `data` unless the key exists; False, and nothing changed, when it does."""
        ...

    def get(self, key: str) -> bytes:
        """The whole file; raises `StoreMissing`."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the file, None when it is not there."""
        ...

    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys that start with `prefix`, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove the file; harmless when it is not there."""
        ...
