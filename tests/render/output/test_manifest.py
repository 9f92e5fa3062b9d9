"""The manifest: writing, reading back, and the errors for damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from render.distributed import SingleRankGroup
from render.engine import render_image
from render.errors import BadInput, RenderFailed
from render.numerics import NUMERICS
from render.output.manifest import KEY, Manifest, parse_manifest, root_of, write_manifest
from render.spec import Spec
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
FIELDS = {
    "schema", "digest", "root", "spec", "model", "width", "height", "tile_size", "levels", "format",
    "tile_set", "tiles", "seams", "kept", "dropped", "range", "device", "numerics", "ranks", "versions",
    "timings", "created",
}  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A manifest as it is written."""
    sink = MemorySink()
    spec = Spec(prompt="a vase", width=264, height=200, steps=2, tile_size=64)
    render_image(spec, ToyModel(), SingleRankGroup(), sink, device=CPU)
    written: dict[str, Any] = json.loads(sink.files[KEY])
    return written


def parsed(document: object) -> Manifest:
    return parse_manifest(json.dumps(document).encode(), "out/image")


def test_the_file_keeps_its_fields(document: dict[str, Any]) -> None:
    assert document.keys() == FIELDS
    assert document["schema"] == 1
    numerics = {"dtype": "float32", "threads_per_rank": 1, "engine": NUMERICS, "attention_window": None}
    assert document["numerics"] == numerics
    assert document["model"].keys() == {"family", "digest"}
    assert document["seams"].keys() == {"ratio", "worst", "offset", "borders"}
    assert document["levels"][0] == [1, 1] and document["levels"][-1] == [264, 200]
    assert all(tile.keys() == {"sha256", "bytes"} for tile in document["tiles"].values())


def test_reading_is_the_reverse_of_writing(document: dict[str, Any]) -> None:
    manifest = parsed(document)
    assert json.loads(manifest.to_json()) == document
    assert root_of(manifest.tiles) == manifest.root
    assert parsed(document) == manifest


def test_files_of_earlier_versions_are_read(document: dict[str, Any]) -> None:
    earlier = {name: value for name, value in document.items() if name not in ("tile_set", "schema", "seams")}
    earlier["numerics"] = {"dtype": "float32", "threads_per_rank": 1}
    manifest = parsed(earlier)
    assert manifest.numerics.engine is None and manifest.tile_set == {} and manifest.root == document["root"]


def replaced(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document | {name: value}


def with_tile(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document | {"tiles": document["tiles"] | {key: value}}


def without_a_tile(document: dict[str, Any]) -> object:
    tiles = dict(document["tiles"])
    del tiles["image_files/9/0_0.png"]
    return document | {"tiles": tiles}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: [],
        lambda document: None,
        lambda document: {},
        lambda document: "manifest",
        replaced("tiles", []),
        replaced("tiles", {}),
        replaced("tiles", {"image_files/9/0_0.png": "x"}),
        replaced("tiles", 7),
        with_tile("../../etc/passwd", {"sha256": "0" * 64, "bytes": 1}),
        with_tile("image_files/9/0_0.png\0", {"sha256": "0" * 64, "bytes": 1}),
        with_tile("image_files/9/0_0.png\n", {"sha256": "0" * 64, "bytes": 1}),
        with_tile("\ud800", {"sha256": "0" * 64, "bytes": 1}),
        with_tile("image_files/9/0_0.png", {"sha256": "0" * 63, "bytes": 1}),
        with_tile("image_files/9/0_0.png", {"sha256": "0" * 64, "bytes": -1}),
        with_tile("image_files/9/0_0.png", {"sha256": "0" * 64, "bytes": "1"}),
        with_tile("image_files/9/0_0.png", {"sha256": 0, "bytes": 1}),
        without_a_tile,
        replaced("levels", []),
        replaced("levels", [[1]]),
        replaced("levels", [[0, 0]]),
        replaced("levels", [["1", "1"]]),
        replaced("levels", [[1 << 30, 1 << 30]]),
        replaced("levels", "levels"),
        replaced("levels", None),
        replaced("levels", [[1, 1]] * 1000),
        replaced("tile_size", 0),
        replaced("tile_size", -1),
        replaced("tile_size", "512"),
        replaced("tile_size", 1.5),
        replaced("tile_size", True),
        replaced("tile_size", 10**30),
        replaced("format", "gif"),
        replaced("format", ["png"]),
        replaced("format", None),
        replaced("tile_set", []),
        replaced("tile_set", {"a": [0, 0, 10]}),
        replaced("tile_set", {"a": "part"}),
        replaced("tile_set", {"../a": [0, 0, 10, 10]}),
        replaced("tile_set", {"a\0": [0, 0, 10, 10]}),
        replaced("width", None),
        replaced("height", "200"),
        replaced("root", 7),
        replaced("root", "x"),
        replaced("digest", None),
        replaced("spec", []),
        replaced("timings", {"total": "long"}),
        replaced("ranks", 0),
        replaced("schema", "1"),
        replaced("schema", 0),
        replaced("schema", 2),
        replaced("schema", 10**400),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_sentence(
    document: dict[str, Any], spoil: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(BadInput) as caught:
        parsed(spoil(document))
    assert "out/image" in str(caught.value) and len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [None, b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_invalid_json_is_refused_in_one_sentence(data: bytes | None) -> None:
    with pytest.raises(BadInput, match=r"image: 'out/image' has") as caught:
        parse_manifest(data, "out/image")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("existing", [b"{", b"[]", b"{}", b'{"root": "other"}'])
def test_another_image_is_not_replaced(document: dict[str, Any], existing: bytes) -> None:
    sink = MemorySink()
    sink.files[KEY] = existing
    with pytest.raises(RenderFailed, match="another image"):
        write_manifest(parsed(document), sink)
    assert sink.files[KEY] == existing


def test_the_same_image_may_be_published_twice(document: dict[str, Any]) -> None:
    sink = MemorySink()
    sink.files[KEY] = json.dumps(document | {"created": "earlier"}).encode()
    write_manifest(parsed(document), sink)
    assert json.loads(sink.files[KEY])["created"] == "earlier"
