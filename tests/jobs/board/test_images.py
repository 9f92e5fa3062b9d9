"""Image files through the board: whole, as ranges and from caches; and no other file of the store."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.board.images import _as_png
from render.output.encode import encode
from tests.jobs.board.conftest import SmallFarm


def test_every_tile_of_the_manifest_comes_through(small_farm: SmallFarm) -> None:
    base = f"/jobs/{small_farm.done[0]}/image"
    manifest = json.loads(small_farm.board.ask(f"{base}/manifest.json").body)
    for key, known in manifest["tiles"].items():
        answer = small_farm.board.ask(f"{base}/{key}")
        assert (answer.status, len(answer.body)) == (200, known["bytes"])
        assert answer.headers["content-type"] == "image/png"
        assert "immutable" in answer.headers["cache-control"] and "set-cookie" not in answer.headers


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [3, 4])
def test_a_tile_in_tiff_is_shown_as_png(kind: Any, bands: int) -> None:
    pixels = np.random.default_rng(1).integers(0, np.iinfo(kind).max + 1, (48, 64, bands)).astype(kind)
    with Image.open(io.BytesIO(_as_png(encode(pixels, "tiff", 90)))) as shown:
        found = np.asarray(shown)
    assert shown.format == "PNG" and found.dtype == np.uint8
    assert np.array_equal(found, pixels if kind is np.uint8 else pixels >> 8)


def test_ranges_and_caches(small_farm: SmallFarm) -> None:
    path, ask = f"/jobs/{small_farm.done[0]}/image/image_files/8/0_0.png", small_farm.board.ask
    whole = ask(path)
    size = len(whole.body)
    for asked, start, end in (
        ("0-9", 0, 10),
        ("10-", 10, size),
        ("-7", size - 7, size),
        (f"0-{size + 9}", 0, size),
    ):
        part = ask(path, range=f"bytes={asked}")
        assert (part.status, part.body) == (206, whole.body[start:end])
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    assert ask(path, range=f"bytes={size}-").status == 416
    assert ask(path, range="lines=1-2").body == whole.body
    assert ask(path, if_none_match=whole.headers["etag"]).status == 304
    head = ask(path, "HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(size), b"")


@pytest.mark.parametrize(
    "key",
    ["spec.json", "../../farm.db", "image_files/8/..%2f..%2fspec.json", "work/x", "image_files/99/0_0.png"],
)
def test_nothing_else_of_the_store_is_served(small_farm: SmallFarm, key: str) -> None:
    assert small_farm.board.ask(f"/jobs/{small_farm.done[0]}/image/{key}").status == 404


def test_an_image_that_is_not_finished_is_not_there(small_farm: SmallFarm) -> None:
    image = {"prompt": "later", "size": "128x128", "not_before": "2099-01-01T00:00+00:00"}
    job = small_farm.board.ask("/api/v1/jobs", "POST", image).json["job"]
    assert small_farm.board.ask(f"/jobs/{job}/image/manifest.json").status == 404
    assert small_farm.board.ask(f"/jobs/{job}/preview").status == 404
    assert small_farm.board.ask(f"/jobs/{job}/view").status == 400
    assert small_farm.board.ask(f"/api/v1/jobs/{job}/cancel", "POST").status == 200
