"""A store that tells of each request to the one below it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from infra.errors import StoreDenied, StoreError, StoreMissing, StoreRetryable
from infra.store.base import Store

Observe = Callable[[str, str, float, int], None]
"""Called with the operation, its outcome (ok, missing, denied, retryable, permanent), seconds and bytes."""


class ObservedStore:
    """The `Store` protocol over another store. `observe` may be called from any thread, and must not wait."""

    def __init__(self, store: Store, observe: Observe) -> None:
        self._store, self._observe = store, observe

    def put(self, key: str, data: bytes, content_type: str) -> None:
        with self._observed("put") as size:
            self._store.put(key, data, content_type)
            size.append(len(data))

    def put_if_absent(self, key: str, data: bytes, content_type: str) -> bool:
        with self._observed("put_if_absent") as size:
            fresh = self._store.put_if_absent(key, data, content_type)
            size.append(len(data) if fresh else 0)
            return fresh

    def get(self, key: str) -> bytes:
        with self._observed("get") as size:
            data = self._store.get(key)
            size.append(len(data))
            return data

    def size(self, key: str) -> int | None:
        with self._observed("size"):
            return self._store.size(key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        with self._observed("keys"):
            yield from self._store.keys(prefix)

    def delete(self, key: str) -> None:
        with self._observed("delete"):
            self._store.delete(key)

    @contextmanager
    def _observed(self, operation: str) -> Iterator[list[int]]:
        started, size, outcome = time.perf_counter(), list[int](), "ok"
        try:
            yield size
        except StoreError as exc:
            outcome = _outcome(exc)
            raise
        finally:
            self._observe(operation, outcome, time.perf_counter() - started, sum(size))


def _outcome(exc: StoreError) -> str:
    known = {StoreMissing: "missing", StoreDenied: "denied", StoreRetryable: "retryable"}
    return next((name for kind, name in known.items() if isinstance(exc, kind)), "permanent")
