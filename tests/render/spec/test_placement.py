"""Where an init image lies on the canvas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from render.errors import BadInput
from render.rect import Rect
from render.spec import Spec
from render.spec.placement import ANCHORS, Placement, place

_SIDES = st.integers(8, 3000)
_SIZES = st.tuples(_SIDES, _SIDES)


@given(_SIZES, _SIZES, st.sampled_from(["crop", "pad", "outpaint"]), st.sampled_from(ANCHORS))
def test_a_fit_keeps_the_shape_and_touches_the_canvas(
    init: tuple[int, int], canvas: tuple[int, int], fit: str, anchor: str
) -> None:
    rect = place(init, canvas, fit, anchor, None)
    scale = rect.width / init[0]
    assert abs(rect.height - init[1] * scale) <= max(1.0, init[1] / init[0]) + 1
    inside = rect.width <= canvas[0] + 1 and rect.height <= canvas[1] + 1
    covers = rect.width >= canvas[0] - 1 and rect.height >= canvas[1] - 1
    assert covers if fit == "crop" else inside
    near = min(abs(rect.width - canvas[0]), abs(rect.height - canvas[1]))
    assert near < 8


@pytest.mark.parametrize(
    ("fit", "anchor", "expected"),
    [
        ("exact", "center", Rect(y=0, x=0, height=1024, width=1024)),
        ("crop", "center", Rect(y=0, x=-342, height=1024, width=1707)),
        ("crop", "left", Rect(y=0, x=0, height=1024, width=1707)),
        ("crop", "bottom-right", Rect(y=0, x=-683, height=1024, width=1707)),
        ("pad", "center", Rect(y=205, x=0, height=614, width=1024)),
        ("outpaint", "top", Rect(y=0, x=0, height=614, width=1024)),
        ("outpaint", "bottom-left", Rect(y=410, x=0, height=614, width=1024)),
    ],
)
def test_fits_and_anchors(fit: str, anchor: str, expected: Rect) -> None:
    assert place((1000, 600), (1024, 1024), fit, anchor, None) == expected


def test_sides_that_are_no_multiples_of_8_keep_their_own_scale() -> None:
    assert place((604, 644), (600, 640), "crop", "center", None) == Rect(y=-2, x=-2, height=644, width=604)
    assert place((604, 644), (608, 648), "outpaint", "center", None) == Rect(y=2, x=2, height=644, width=604)


def test_a_placement_is_in_shares_of_the_image() -> None:
    placement = Placement.from_any("0.25,0.5,0.5")
    assert place((400, 200), (800, 600), "pad", "center", placement) == Rect(
        y=300, x=200, height=200, width=400
    )
    with pytest.raises(BadInput, match="leaves nothing of the init image on the image"):
        place((400, 200), (800, 600), "pad", "center", Placement(x=1.0, y=0.0, width=0.5))


@pytest.mark.parametrize("text", ["0,0", "a,b,c", "0,0,0", "0,0,nan", "0;0;1", "0,0,99"])
def test_what_is_no_placement_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="placement"):
        Placement.from_any(text)


@pytest.fixture
def wide(tmp_path: Path) -> str:
    Image.new("RGB", (1000, 600), (200, 30, 30)).save(tmp_path / "wide.png")
    return str(tmp_path / "wide.png")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "another shape than 1024x1024; use --size 1024x616, or --fit crop, pad or outpaint"),
        ({"anchor": "top"}, "anchor: 'top' needs another fit"),
        ({"fit": "crop", "placement": "0,0,1"}, "does not go with a placement"),
        ({"fit": "outpaint", "format": "jpeg"}, "cannot keep pixels to the byte; use png, webp or tiff"),
        ({"fit": "stretch"}, "use one of exact, crop, pad, outpaint"),
        ({"anchor": "middle"}, "use one of center, top"),
        ({"fit": "outpaint", "tile_set": ["a: b,b,,"]}, "does not go with a mask or outpainting"),
        ({"mask": "alpha"}, "it has none; give a mask"),
    ],
)
def test_what_does_not_go_together_is_told(values: dict[str, object], words: str, wide: str) -> None:
    with pytest.raises(BadInput, match=words):
        Spec.from_mapping({"prompt": "a vase", "init": wide, "width": 1024, "height": 1024} | values)


@pytest.mark.parametrize("values", [{"mask": "m.png"}, {"fit": "pad"}, {"placement": "0,0,1"}])
def test_what_needs_an_init_image_says_so(values: dict[str, object], tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "m.png")
    if "mask" in values:
        values = {"mask": str(tmp_path / "m.png")}
    with pytest.raises(BadInput, match="needs an init image; give --init"):
        Spec.from_mapping({"prompt": "a vase"} | values)


def test_a_placement_alone_means_outpainting(wide: str) -> None:
    spec = Spec.from_mapping({"prompt": "a vase", "init": wide, "size": "1024x1024", "placement": "0,0.2,1"})
    assert spec.fit == "outpaint" and spec.kept is not None
    assert Spec.from_mapping(spec.to_dict()) == spec
    assert Spec.from_mapping(spec.to_dict() | {"anchor": "centre"}) == spec


@pytest.mark.parametrize("fit", ["crop", "pad", "outpaint"])
def test_the_init_image_is_where_the_fit_puts_it(fit: str, wide: str) -> None:
    spec = Spec.from_mapping({"prompt": "a vase", "init": wide, "size": "1024x1024", "fit": fit})
    assert spec.source is not None
    found = spec.source.pixels(Rect(y=0, x=0, height=256, width=256), 256, 256)
    middle, corner = found[128, 128], found[0, 0]
    assert middle.tolist() == [200, 30, 30]
    assert corner.tolist() == ([255, 255, 255] if fit == "pad" else [200, 30, 30])


@given(st.data())
def test_an_area_of_a_placed_image_is_cut_from_the_whole(data: st.DataObject) -> None:
    source = _placed()
    width, height = data.draw(st.sampled_from([(200, 160), (100, 80), (50, 40)]))
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    area = Rect(
        y=y, x=x, height=data.draw(st.integers(1, height - y)), width=data.draw(st.integers(1, width - x))
    )
    whole = Rect(y=0, x=0, height=height, width=width)
    for read in (source.pixels, source.kept):
        assert np.array_equal(read(area, width, height), read(whole, width, height)[area.slices])


_FILES: list[Path] = []


def _placed():  # type: ignore[no-untyped-def]
    import tempfile

    if not _FILES:
        _FILES.append(Path(tempfile.mkdtemp()) / "noise.png")
        noise = np.random.default_rng(2).integers(0, 256, (90, 120, 4), np.uint8)
        Image.fromarray(noise).save(_FILES[0])
    spec = Spec.from_mapping(
        {"prompt": "x", "init": str(_FILES[0]), "size": "200x160", "placement": "0.1,0.3,0.8"}
    )
    assert spec.source is not None
    return spec.source
