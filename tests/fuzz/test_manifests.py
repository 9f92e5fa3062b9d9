"""Manifests with values of other types, cut and flipped: read whole, or refused in one sentence."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from infra.store.local import LocalStore
from render.errors import BadInput
from render.output.manifest import Manifest, parse_manifest
from tests.fuzz import values
from tests.fuzz.campaign import Result, run
from tests.fuzz.test_specs import refused

_TILE = {"sha256": "0" * 64, "bytes": 3}
GOOD: dict[str, Any] = {
    "schema": 1,
    "digest": "d" * 64,
    "root": "a" * 64,
    "spec": {"prompt": "a vase"},
    "model": {"family": "sdxl", "digest": "x"},
    "width": 64,
    "height": 64,
    "tile_size": 64,
    "levels": [[1, 1], [2, 2], [64, 64]],
    "format": "png",
    "tile_set": {"lawn": [0, 0, 32, 64]},
    "tiles": {f"image_files/{level}/0_0.png": _TILE for level in range(3)},
    "range": [0, 255],
    "ranks": 1,
    "versions": {"torch": "2"},
    "timings": {"total": 1.5},
}
_KEYS = (
    "image_files/0/0_0.png\0", "../x", "image_files/../../x.png", "/etc/passwd", "image_files/0/0_0.exe",
    "image_files/99/999999_999999.webp", "image_files/٣/0_0.png", "image_files/0/0_0.png\n", "",
)  # fmt: skip


def document(random: Random) -> bytes:
    """A manifest with a few changes."""
    made = json.loads(json.dumps(GOOD))
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        name = random.choice(list(made))
        roll = random.random()
        if roll < 0.5:
            made[name] = values.json_value(random)
        elif roll < 0.6:
            del made[name]
        elif isinstance(made[name], dict):
            made[name][random.choice((*_KEYS, *map(str, made[name])))] = random.choice(
                (_TILE, [0, 0, 1, 1], [-1, 0, 1, 1], values.json_value(random))
            )
        elif isinstance(made[name], list) and made[name]:
            made[name][random.randrange(len(made[name]))] = values.json_value(random)
    try:
        data = bytearray(json.dumps(made).encode())
    except (ValueError, RecursionError):
        data = bytearray(b"[" * 100_000)
    for _ in range(random.choice((0, 0, 0, 1, 4))):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data[: random.randrange(len(data))] if random.random() < 0.05 else data)


def judge(data: bytes) -> str:
    try:
        manifest = parse_manifest(data, "out/vase")
    except BadInput as exc:
        return refused(exc)
    _check_keys(manifest)
    return "read"


def _check_keys(manifest: Manifest) -> None:
    """No key and no name leaves the image's folder."""
    store = LocalStore(values.FOLDER)
    for key in (*manifest.tiles, *manifest.tile_set, *manifest.full_level_keys()):
        assert "\0" not in key and ".." not in key and not key.startswith("/"), key
        store.url(key)
    manifest.to_json()


def campaign(cases: int) -> Result:
    return run("manifests", cases, document, judge)


def test_short() -> None:
    campaign(800).check()


@pytest.mark.slow
def test_long() -> None:
    campaign(5_000).check()
