"""Whose a location is, checked by several machines at once; and which numerics its work has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from infra.store.base import Store
from infra.store.decorator import StoreDecorator
from infra.store.local import LocalStore
from infra.store.parts import part_of
from jobs.image_store import (
    MARKER,
    adopt_checkpoint,
    claim,
    discard_other_numerics,
    find_finished,
    finished_image,
)
from render.errors import BadInput
from render.numerics import Numerics

Result = TypeVar("Result")
OURS, OTHERS = "a" * 64, "b" * 64
NUMERICS = Numerics(numerics=1, device="cpu", packages={"torch": "2.13"})
NEWER = replace(NUMERICS, packages={"torch": "2.14"})


class Interrupted(StoreDecorator):
    """A store in which another machine does something right after our first look."""

    def __init__(self, store: Store, meanwhile: Callable[[], None]) -> None:
        super().__init__(store)
        self._meanwhile = meanwhile
        self._looks = 0

    def _call(self, operation: str, sent: int, work: Callable[[], Result]) -> Result:
        try:
            return work()
        finally:
            self._looks += operation == "get"
            if self._looks == 2:
                self._looks += 1
                self._meanwhile()

    def _around(self, store: Store) -> Store:
        return Interrupted(store, self._meanwhile)


def test_a_claim_that_another_node_makes_meanwhile_is_seen(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    assert finished_image(Interrupted(place, lambda: claim(place, OURS, "{}", NUMERICS)), OURS) is None
    assert place.size(MARKER) is not None


def test_a_claim_of_another_image_meanwhile_is_refused(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    with pytest.raises(BadInput, match="another spec's unfinished image"):
        finished_image(Interrupted(place, lambda: claim(place, OTHERS, "{}", NUMERICS)), OURS)


def test_a_place_with_anything_else_in_it_is_refused(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    place.put("holiday.txt", b"x", "text/plain")
    with pytest.raises(BadInput, match="holds no Chorale image"):
        finished_image(place, OURS)


def put_unfinished(store: Store) -> None:
    for key in ("work/checkpoint.safetensors", "work/preview.webp", "image_files/9/0_0.png", "preview.webp"):
        store.put(key, b"x", "text/plain")


def test_work_of_other_numerics_is_removed_and_that_of_equal_ones_stays(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    assert not discard_other_numerics(place, NUMERICS)
    claim(place, OURS, "{}", NUMERICS)
    assert not discard_other_numerics(place, NEWER), "there was nothing to remove"
    put_unfinished(place)
    assert not discard_other_numerics(place, NUMERICS)
    assert place.size("image_files/9/0_0.png") == 1
    assert discard_other_numerics(place, NEWER)
    assert [entry.key for entry in place.entries()] == [MARKER]


def test_unfinished_work_of_version_0_1_stays(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    place.put(MARKER, f'{{"digest": "{OURS}", "spec": {{}}}}'.encode(), "application/json")
    put_unfinished(place)
    assert finished_image(place, OURS) is None
    assert not discard_other_numerics(place, NUMERICS)
    assert place.size("work/checkpoint.safetensors") == 1


def test_a_finished_image_is_found_in_any_of_its_folders(tmp_path: Path) -> None:
    images = LocalStore(tmp_path)
    images.put(f"{OURS}-broken/manifest.json", b"{", "application/json")
    images.put(f"{OURS}-other/manifest.json", manifest(OTHERS), "application/json")
    folders = [OURS, f"{OURS}-broken", f"{OURS}-other", f"{OURS}-one"]
    assert find_finished(images, folders, OURS) is None
    images.put(f"{OURS}-one/manifest.json", manifest(OURS), "application/json")
    found = find_finished(images, folders, OURS)
    assert found is not None and (found[0], found[1].root) == (f"{OURS}-one", "e" * 64)


def manifest(digest: str) -> bytes:
    tile = {"image_files/0/0_0.png": {"sha256": "0" * 64, "bytes": 1}}
    size = {"width": 1, "height": 1, "tile_size": 512, "levels": [[1, 1]], "format": "png"}
    return json.dumps({"digest": digest, "root": "e" * 64, "tiles": tile} | size).encode()


def test_a_checkpoint_is_copied_where_there_is_none(tmp_path: Path) -> None:
    images, key = LocalStore(tmp_path), "work/checkpoint.safetensors"
    assert not adopt_checkpoint(images, OURS, f"{OURS}-one")
    images.put(f"{OURS}/{key}", b"old", "application/octet-stream")
    assert adopt_checkpoint(images, OURS, f"{OURS}-one")
    images.put(f"{OURS}-one/{key}", b"newer", "application/octet-stream")
    assert not adopt_checkpoint(images, OURS, f"{OURS}-one")
    assert (images.get(f"{OURS}/{key}"), images.get(f"{OURS}-one/{key}")) == (b"old", b"newer")


def test_a_claim_removes_what_an_attempt_that_was_killed_long_ago_has_left(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    place.put("image_files/0/0_0.png", b"a tile", "image/png")
    old, new = (part_of(tmp_path / "image_files" / "0" / "0_0.png") for _ in range(2))
    for path in (old, new):
        path.write_bytes(b"half a ti")
    os.utime(old, (0, 0))
    claim(place, OURS, "{}", NUMERICS)
    assert not old.exists() and new.exists()
    assert place.get("image_files/0/0_0.png") == b"a tile"
