"""A store that waits out short outages of the one below it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from infra.errors import StoreRetryable
from infra.store.base import Store

Result = TypeVar("Result")


class PatientStore:
    """The `Store` protocol over another store: what may help is tried again for `patience_s` seconds."""

    def __init__(self, store: Store, patience_s: float = 60.0) -> None:
        self._store, self._patience_s = store, patience_s

    def put(self, key: str, data: bytes, content_type: str) -> None:
        self._patiently(lambda: self._store.put(key, data, content_type))

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        return self._patiently(lambda: self._store.put_if_absent(key, data, content_type))

    def get(self, key: str) -> bytes:
        return self._patiently(lambda: self._store.get(key))

    def size(self, key: str) -> int | None:
        return self._patiently(lambda: self._store.size(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        yield from self._patiently(lambda: list(self._store.keys(prefix)))

    def delete(self, key: str) -> None:
        self._patiently(lambda: self._store.delete(key))

    def _patiently(self, work: Callable[[], Result]) -> Result:
        end, pause = time.monotonic() + self._patience_s, 0.25
        while True:
            try:
                return work()
            except StoreRetryable:
                if time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 4.0)
