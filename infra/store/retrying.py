"""A store that retries while the one below it is unreachable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_before_delay, wait_exponential

from infra.errors import StoreRetryable
from infra.store.base import Store
from infra.store.decorator import StoreDecorator

Result = TypeVar("Result")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 4.0


class RetryingStore(StoreDecorator):
    """The `Store` protocol over another store: temporary errors are retried for `patience_s` seconds."""

    def __init__(self, store: Store, patience_s: float = 60.0) -> None:
        super().__init__(store)
        self._patience_s = patience_s
        self._retrying = Retrying(
            retry=retry_if_exception_type(StoreRetryable),
            wait=wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            stop=stop_before_delay(patience_s),
            reraise=True,
        )

    def _around(self, store: Store) -> Store:
        return RetryingStore(store, self._patience_s)

    def _call(self, operation: str, sent: int, work: Callable[[], Result]) -> Result:
        # Its state is per thread, so that several threads may store tiles at once.
        return self._retrying(work)
