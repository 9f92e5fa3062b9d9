"""The stores of `infra` as sinks of the engine, which finds them by the entry points `chorale.sinks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from infra.errors import SettingError, StoreDenied, StoreError, StoreRetryable, StoreUnusable
from infra.settings import read_settings
from infra.store.base import Store
from infra.store.decorator import StoreDecorator
from infra.store.open import open_store
from render.errors import BadInput, SinkError, SinkUnavailable
from render.sink import Sink, SinkObserver

Result = TypeVar("Result")


def open_sink(url: str, *, patience_s: float, observer: SinkObserver | None = None) -> Sink:
    """The sink at `s3://bucket/prefix`, `file:///folder` or a folder's path; opens no connection yet.

    An outage is waited out for `patience_s` seconds; `observer` is called after every try of an operation.
    Raises `BadInput`; the sink's operations raise `SinkError`, `SinkUnavailable` for an outage.
    """
    try:
        store = open_store(url, read_settings({}), patience_s=patience_s, observe=observer, field="out")
    except SettingError as exc:
        raise BadInput("out", url, f"cannot be opened: {exc}") from exc
    return _StoreSink(store)


class _StoreSink(StoreDecorator):
    """A store whose errors are the engine's."""

    def _around(self, store: Store) -> Store:
        return _StoreSink(store)

    def _call(self, operation: str, sent: int, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except (StoreRetryable, StoreUnusable, StoreDenied) as exc:
            raise SinkUnavailable(str(exc)) from exc
        except StoreError as exc:
            raise SinkError(str(exc)) from exc
