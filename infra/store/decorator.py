"""A store that does something around each call of the one below it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from infra.store.base import Entry, Store
from infra.store.local import LocalStore

Result = TypeVar("Result")


class StoreDecorator(ABC):
    """The `Store` protocol over another store; every call that leaves goes through `_call`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store!r})"

    @abstractmethod
    def _call(self, operation: str, sent: int, work: Callable[[], Result]) -> Result:
        """Do the work; `operation` is the method's name, `sent` the bytes that it carries."""

    @abstractmethod
    def _around(self, store: Store) -> Store:
        """The same around another store."""

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        self._call("put", len(data), lambda: self._store.put(key, data, content_type, immutable))

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        return self._call(
            "put_if_absent", len(data), lambda: self._store.put_if_absent(key, data, content_type)
        )

    def get(self, key: str) -> bytes:
        return self._call("get", 0, lambda: self._store.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._call("get_range", 0, lambda: self._store.get_range(key, start, length))

    def size(self, key: str) -> int | None:
        return self._call("size", 0, lambda: self._store.size(key))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        # Whole, so that a listing that broke off in the middle can be made again.
        yield from self._call("entries", 0, lambda: list(self._store.entries(prefix)))

    def folders(self) -> Iterator[str]:
        yield from self._call("folders", 0, lambda: list(self._store.folders()))

    def delete(self, key: str) -> None:
        self._call("delete", 0, lambda: self._store.delete(key))

    def presign(self, key: str, seconds: int) -> str | None:
        return self._store.presign(key, seconds)

    def url(self, key: str = "") -> str:
        return self._store.url(key)

    def within(self, folder: str) -> Store:
        return self._around(self._store.within(folder))


def local_folder(store: Store) -> Path | None:
    """The folder of a local store, whatever is around it; None for any other store."""
    while isinstance(store, StoreDecorator):
        store = store._store
    return store.folder if isinstance(store, LocalStore) else None
