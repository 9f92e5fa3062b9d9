"""The store's contract; each backend passes the same tests."""

import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.errors import StoreDenied, StoreMissing, StorePermanent
from infra.store.base import Store
from infra.store.decorator import local_folder
from infra.store.instrumented import InstrumentedStore, StoreCall
from infra.store.local import LocalStore
from infra.store.retrying import RetryingStore
from tests.support.buckets import Bucket, credentials


@contextmanager
def backend(name: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Store]:
    if name == "local":
        yield LocalStore(folder / "store")
        return
    bucket: Bucket = request.getfixturevalue(name)
    with credentials(bucket):
        yield bucket.store(bucket.fresh_url())


@pytest.fixture(params=["local", "moto", "swift"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with backend(request.param, request, tmp_path) as made:
        yield made


def test_what_is_put_is_got(store: Store) -> None:
    store.put("a/b.bin", b"one", "application/octet-stream")
    store.put("a/b.bin", b"two", "application/octet-stream")
    assert store.get("a/b.bin") == b"two"
    assert store.size("a/b.bin") == 3
    assert keys(store) == ["a/b.bin"]


def test_what_is_missing_says_so(store: Store) -> None:
    assert store.size("none") is None
    with pytest.raises(StoreMissing, match="none"):
        store.get("none")
    store.delete("none")


def test_what_is_there_already_is_left_as_it_is(store: Store) -> None:
    assert store.put_if_absent("m.json", b"ours", "application/json") is True
    assert store.put_if_absent("m.json", b"theirs", "application/json") is False
    assert store.put_if_absent("m.json", b"ours", "application/json") is True, "it may be ours"
    assert store.get("m.json") == b"ours"


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_put_if_absent_has_one_winner_at_once(store: Store) -> None:
    # On the folder alone: of the servers that the tests can start, none decides this atomically.
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
    assert keys(store) == ["m"], "losers leave nothing behind"


def test_a_listing_is_sorted_and_filtered(store: Store) -> None:
    for key in ("t/2", "t/1", "u/1", "u/sub/1", "top"):
        store.put(key, key.encode(), "text/plain")
    assert keys(store, "t/") == ["t/1", "t/2"]
    assert keys(store, "t") == ["t/1", "t/2", "top"]
    assert keys(store, "none/") == []
    assert [(each.size, each.modified > 1e9) for each in store.entries("u/")] == [(3, True), (7, True)]
    assert list(store.folders()) == ["t", "u"]
    store.delete("t/1")
    assert keys(store, "t/") == ["t/2"]


def test_a_long_listing_is_complete(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.store.s3._PAGE", 3)
    names = [f"n/{number:04d}" for number in range(10)]
    for name in names:
        store.put(name, b"", "text/plain")
    assert keys(store) == names


def test_a_part_of_a_file(store: Store) -> None:
    store.put("file", b"0123456789", "text/plain")
    assert store.get_range("file", 2, 3) == b"234"
    assert store.get_range("file", 8, 5) == b"89"
    assert store.get_range("file", 20, 5) == b"" and store.get_range("file", 2, 0) == b""
    with pytest.raises(StoreMissing):
        store.get_range("none", 0, 1)


@pytest.mark.parametrize("key", ["a b/ü.png", "a+b&c=d%20e.png", "x" * 200])
def test_unusual_names(store: Store, key: str) -> None:
    store.put(key, b"data", "image/png")
    assert (store.get(key), store.size(key), keys(store)) == (b"data", 4, [key])
    store.delete(key)
    assert keys(store) == []


def test_a_store_within_a_store(store: Store) -> None:
    inner = store.within("digest").within("deep")
    inner.put("tile", b"x", "image/png")
    assert keys(store) == ["digest/deep/tile"] and keys(inner) == ["tile"]
    assert inner.url("tile") == store.url("digest/deep/tile")


def test_every_wrapping_is_a_store_too(store: Store) -> None:
    calls: list[StoreCall] = []
    wrapped = RetryingStore(InstrumentedStore(store, calls.append), 1.0).within("in")
    wrapped.put("a", b"12345", "text/plain", immutable=True)
    assert wrapped.put_if_absent("a", b"other", "text/plain") is False
    assert (wrapped.get("a"), wrapped.get_range("a", 1, 2), wrapped.size("a")) == (b"12345", b"23", 5)
    assert keys(wrapped) == ["a"] and list(wrapped.folders()) == []
    wrapped.delete("a")
    with pytest.raises(StoreMissing):
        wrapped.get("a")
    assert wrapped.url("a") == store.url("in/a")
    assert [(call.operation, call.outcome, call.bytes) for call in calls] == [
        ("put", "ok", 5),
        ("put_if_absent", "ok", 5),
        ("get", "ok", 5),
        ("get_range", "ok", 2),
        ("size", "ok", 0),
        ("entries", "ok", 0),
        ("folders", "ok", 0),
        ("delete", "ok", 0),
        ("get", "missing", 0),
    ]
    assert all(call.seconds >= 0 for call in calls)


def test_anybody_may_read_by_a_presigned_url(store: Store) -> None:
    store.put("tile", b"data", "image/png", immutable=True)
    store.put("manifest", b"{}", "application/json")
    signed = [store.presign(key, 60) for key in ("tile", "manifest")]
    if isinstance(store, LocalStore):
        assert signed == [None, None]
        return
    headers = []
    for url in signed:
        assert url is not None
        with urllib.request.urlopen(url, timeout=10) as answer:
            headers.append((answer.headers["Content-Type"], answer.headers["Cache-Control"]))
    assert headers == [
        ("image/png", "public, max-age=31536000, immutable"),
        ("application/json", "no-cache"),
    ]


def keys(store: Store, prefix: str = "") -> list[str]:
    return [each.key for each in store.entries(prefix)]


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
    with pytest.raises(StoreDenied, match="no permission"):
        store.put("tile", b"data", "image/png")


def test_a_local_store_has_its_folder_whatever_is_around_it(tmp_path: Path) -> None:
    local = LocalStore(tmp_path)
    assert local_folder(local) == local_folder(RetryingStore(RetryingStore(local))) == tmp_path
