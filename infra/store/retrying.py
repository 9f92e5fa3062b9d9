"""A store that waits out short outages of the one below it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from infra.errors import StoreRetryable
from infra.store.base import Store
from infra.store.decorator import StoreDecorator

Result = TypeVar("Result")


class RetryingStore(StoreDecorator):
    """The `Store` protocol over another store: what may help is tried again for `patience_s` seconds."""

    def __init__(self, store: Store, patience_s: float = 60.0) -> None:
        super().__init__(store)
        self._patience_s = patience_s

    def _around(self, store: Store) -> Store:
        return RetryingStore(store, self._patience_s)

    def _call(self, operation: str, sent: int, work: Callable[[], Result]) -> Result:
        end, pause = time.monotonic() + self._patience_s, 0.25
        while True:
            try:
                return work()
            except StoreRetryable:
                if time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 4.0)
