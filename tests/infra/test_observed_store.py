"""An observed store does what the one below does, and tells of each request."""

from pathlib import Path

import pytest

from infra.errors import StoreDenied, StoreError, StoreMissing, StorePermanent, StoreRetryable
from infra.store.local import LocalStore
from infra.store.observed import ObservedStore

Told = tuple[str, str, int]


class Listener:
    def __init__(self) -> None:
        self.told: list[Told] = []

    def __call__(self, operation: str, outcome: str, seconds: float, size: int) -> None:
        assert seconds >= 0
        self.told.append((operation, outcome, size))


def test_requests_are_passed_on_and_told(tmp_path: Path) -> None:
    listener = Listener()
    store = ObservedStore(LocalStore(tmp_path), listener)
    store.put("a/b", b"four", "text/plain")
    assert not store.put_if_absent("a/b", b"longer", "text/plain")
    assert store.put_if_absent("c", b"five!", "text/plain")
    assert (store.get("a/b"), store.size("a/b"), list(store.keys())) == (b"four", 4, ["a/b", "c"])
    store.delete("c")
    assert listener.told == [
        ("put", "ok", 4),
        ("put_if_absent", "ok", 0),
        ("put_if_absent", "ok", 5),
        ("get", "ok", 4),
        ("size", "ok", 0),
        ("keys", "ok", 0),
        ("delete", "ok", 0),
    ]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StoreMissing, "missing"),
        (StoreDenied, "denied"),
        (StoreRetryable, "retryable"),
        (StorePermanent, "permanent"),
    ],
)
def test_errors_pass_through_with_their_outcome(
    tmp_path: Path, error: type[StoreError], outcome: str
) -> None:
    class Broken(LocalStore):
        def get(self, key: str) -> bytes:
            raise error("no")

    listener = Listener()
    with pytest.raises(error):
        ObservedStore(Broken(tmp_path), listener).get("a")
    assert listener.told == [("get", outcome, 0)]
