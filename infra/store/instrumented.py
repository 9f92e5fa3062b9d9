"""A store that reports each call to an observer: operation, outcome, bytes and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from infra.errors import StoreDenied, StoreMissing, StoreRetryable
from infra.store.base import Store
from infra.store.decorator import StoreDecorator

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class StoreCall:
    """One call of a store. Each try of a retrying store counts; retries inside boto3 do not."""

    operation: str
    """The method's name: put, put_if_absent, get, get_range, size, entries, folders or delete."""
    outcome: str
    """ok, missing, denied, retryable or permanent."""
    bytes: int
    """Sent; for a get, received."""
    seconds: float


Observer = Callable[[StoreCall], None]
"""Called in the thread that made the call."""


class InstrumentedStore(StoreDecorator):
    """The `Store` protocol over another store, with an observer."""

    def __init__(self, store: Store, observe: Observer) -> None:
        super().__init__(store)
        self._observe = observe

    def _around(self, store: Store) -> Store:
        return InstrumentedStore(store, self._observe)

    def _call(self, operation: str, sent: int, work: Callable[[], Result]) -> Result:
        started, outcome, carried = time.perf_counter(), "permanent", sent
        try:
            result = work()
            outcome = "ok"
            if isinstance(result, bytes):
                carried = len(result)
            return result
        except StoreMissing:
            outcome = "missing"
            raise
        except StoreDenied:
            outcome = "denied"
            raise
        except StoreRetryable:
            outcome = "retryable"
            raise
        finally:
            seconds = time.perf_counter() - started
            self._observe(StoreCall(operation=operation, outcome=outcome, bytes=carried, seconds=seconds))
