"""A patient store waits out an outage, and tells what does not pass."""

from pathlib import Path

import pytest

from infra.errors import StoreMissing, StorePermanent, StoreRetryable
from infra.store.local import LocalStore
from infra.store.retrying import RetryingStore


class Moody(LocalStore):
    """Fails so many times with one kind of error."""

    failures = 0
    error: type[Exception] = StoreRetryable

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error("not now")
        super().put(key, data, content_type)


def test_an_outage_is_waited_out(tmp_path: Path) -> None:
    moody = Moody(tmp_path)
    moody.failures = 2
    store = RetryingStore(moody)
    store.put("a/b", b"data", "text/plain")
    assert (store.get("a/b"), store.size("a/b"), next(store.entries()).key) == (b"data", 4, "a/b")
    assert store.put_if_absent("a/b", b"other", "text/plain") is False
    store.delete("a/b")
    with pytest.raises(StoreMissing):
        store.get("a/b")


def test_what_does_not_pass_is_told(tmp_path: Path) -> None:
    moody = Moody(tmp_path)
    moody.failures = 100
    with pytest.raises(StoreRetryable):
        RetryingStore(moody, patience_s=0.5).put("a", b"", "text/plain")
    moody.error = StorePermanent
    left = moody.failures
    with pytest.raises(StorePermanent):
        RetryingStore(moody).put("a", b"", "text/plain")
    assert moody.failures == left - 1, "not tried again"
