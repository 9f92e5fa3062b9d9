"""The store's contract; each backend passes the same tests."""

import os
import threading
from pathlib import Path

import pytest

from infra.errors import StoreDenied, StoreMissing, StorePermanent
from infra.store.base import Store
from infra.store.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "store")


def test_what_is_put_is_got(store: Store) -> None:
    store.put("a/b.bin", b"one", "application/octet-stream")
    store.put("a/b.bin", b"two", "application/octet-stream")
    assert store.get("a/b.bin") == b"two"
    assert store.size("a/b.bin") == 3
    assert list(store.keys()) == ["a/b.bin"]


def test_what_is_missing_says_so(store: Store) -> None:
    assert store.size("none") is None
    with pytest.raises(StoreMissing, match="none"):
        store.get("none")
    store.delete("none")


def test_put_if_absent_has_one_winner(store: Store) -> None:
    barrier, won = threading.Barrier(8), []

    def put(number: int) -> None:
        barrier.wait()
        if store.put_if_absent("m", b"%d" % number, "text/plain"):
            won.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("m") == b"%d" % won[0]
    assert list(store.keys()) == ["m"], "losers leave nothing behind"


def test_keys_are_sorted_and_filtered(store: Store) -> None:
    for key in ("t/2", "t/1", "u/1"):
        store.put(key, b"", "text/plain")
    assert list(store.keys("t/")) == ["t/1", "t/2"]
    store.delete("t/1")
    assert list(store.keys("t/")) == ["t/2"]


@pytest.mark.parametrize("key", ["../up", "/root", "a/../../b", ""])
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    with pytest.raises(StorePermanent, match="relative path"):
        store.put(key, b"", "text/plain")


def test_a_half_written_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorePermanent, match="disk is full"):
        store.put("tile", b"data", "image/png")
    assert list(tmp_path.iterdir()) == []


def test_no_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(StoreDenied, match="refuses access"):
        store.put("tile", b"data", "image/png")
