"""Renditions: what is made, measured with Pillow; names; and channels as files."""

import io
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.renditions.channel import Channel, Rendition, Rules, find_channel, known_channels
from jobs.renditions.check import RuleResult, check_rendition
from jobs.renditions.maker import make_rendition
from jobs.renditions.names import file_name, safe
from jobs.renditions.options import read_wanted
from jobs.renditions.sizes import parse_bytes, parse_pixels
from render.errors import BadInput

NOTHING: dict[str, Any] = dict.fromkeys(
    ("channel", "size", "fit", "format", "quality", "max_bytes", "background", "dpi")
)


def picture(width: int, height: int, alpha: bool = False) -> Any:
    """A red box of half the size on white, or on nothing."""
    pixels = np.full((height, width, 4 if alpha else 3), 255, np.uint8)
    if alpha:
        pixels[..., 3] = 0
    box = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    pixels[box] = [200, 30, 30, 255][: pixels.shape[2]]
    return pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def failed(results: list[RuleResult]) -> list[str]:
    return [each.rule for each in results if not each.passes]


@given(
    st.tuples(st.integers(16, 300), st.integers(16, 300)),
    st.tuples(st.integers(8, 400), st.integers(8, 400)),
    st.sampled_from(["pad", "crop", "inside"]),
    st.sampled_from(["jpeg", "png", "webp", "tiff"]),
    st.booleans(),
)
def test_a_rendition_has_the_size_that_was_asked_for(
    own: tuple[int, int], wanted: tuple[int, int], fit: Any, form: Any, alpha: bool
) -> None:
    rendition = Rendition(width=wanted[0], height=wanted[1], fit=fit, format=form, dpi=300)
    with opened(make_rendition(picture(*own, alpha=alpha), rendition)) as image:
        assert image.format == form.upper()
        if fit == "inside":
            assert image.width <= min(own[0], wanted[0]) and image.height <= min(own[1], wanted[1])
            assert image.width == min(own[0], wanted[0]) or image.height == min(own[1], wanted[1])
        else:
            assert image.size == wanted
        assert image.info["icc_profile"]
        if form != "webp":
            assert round(float(image.info["dpi"][0])) == 300


def test_padding_and_transparency_take_the_background() -> None:
    gray = Rendition(width=100, height=60, background=(230, 230, 230), format="png")
    with opened(make_rendition(picture(40, 40, alpha=True), gray)) as image:
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == image.getpixel((99, 59)) == (230, 230, 230)
        assert image.getpixel((50, 30)) == (200, 30, 30)
    clear = Rendition(width=100, height=60, format="png")
    with opened(make_rendition(picture(40, 40, alpha=True), clear)) as image:
        assert image.getpixel((0, 0))[3] == 0  # type: ignore[index]
    with opened(make_rendition(picture(40, 40, alpha=True), Rendition(width=100, height=60))) as image:
        assert image.getpixel((0, 0)) == (255, 255, 255)


def test_black_and_white_stripes_shrink_to_the_gray_of_linear_light() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    image = pyvips.Image.new_from_array(stripes).copy(interpretation="srgb")
    with opened(make_rendition(image, Rendition(width=32, height=32, format="png"))) as shrunk:
        # Half the light is 188 of 255 in sRGB; a mean of the coded values would be 128.
        assert abs(int(np.asarray(shrunk)[8:24, 8:24].mean()) - 188) <= 2


def test_the_quality_falls_until_the_file_fits() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (300, 300, 3), np.uint8)
    image = pyvips.Image.new_from_array(noise).copy(interpretation="srgb")
    free = len(make_rendition(image, Rendition()))
    limit = free * 2 // 3
    assert free // 3 < len(make_rendition(image, Rendition(max_bytes=limit))) <= limit
    with pytest.raises(BadInput, match="use a smaller size"):
        make_rendition(image, Rendition(max_bytes=1000))
    with pytest.raises(BadInput, match="use jpeg or webp"):
        make_rendition(image, Rendition(max_bytes=1000, format="png"))


def test_every_channel_makes_a_file_that_keeps_its_rules() -> None:
    """From a picture that fills its frame as the channel asks."""
    assert {each.name for each in known_channels()} >= {
        "amazon", "google", "shopify", "zalando", "ebay", "iconic", "print-300dpi",
    }  # fmt: skip
    for channel in known_channels():
        low, high = channel.rules.fill or (0.5, 0.5)
        share = (low + high) / 2
        pixels = np.full((3000, 3000, 3), channel.rules.background or (255, 255, 255), np.uint8)
        edge = round(1500 * (1 - share))
        pixels[edge:-edge, edge:-edge] = (200, 30, 30)
        image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
        results = check_rendition(make_rendition(image, channel.rendition), channel.rules, (3000, 3000))
        assert len(results) >= 3
        assert failed(results) == [], channel.name


@pytest.mark.parametrize(
    ("rules", "broken"),
    [
        (Rules(formats=("png",)), "format"),
        (Rules(shortest_side=101), "shortest side"),
        (Rules(longest_side=(500, 1000)), "longest side"),
        (Rules(megapixels=0.01), "megapixels"),
        (Rules(shape=1.0), "shape"),
        (Rules(max_bytes=100), "bytes"),
        (Rules(background=(0, 0, 0)), "background"),
        (Rules(fill=(0.85, 1.0)), "product fills"),
        (Rules(enlarged=False), "not enlarged"),
        (Rules(dpi=300), "resolution"),
    ],
)
def test_each_rule_finds_what_breaks_it(rules: Rules, broken: str) -> None:
    data = make_rendition(picture(200, 100), Rendition())
    assert failed(check_rendition(data, rules, (150, 80))) == [broken]


def test_a_file_without_the_mark_of_ai_is_found() -> None:
    rules = Rules(marked_as_ai=True)
    for form in ("jpeg", "png", "webp", "tiff"):
        made = make_rendition(picture(64, 64), Rendition(format=form))
        assert failed(check_rendition(made, rules, (64, 64))) == []
    plain = io.BytesIO()
    Image.new("RGB", (64, 64)).save(plain, "JPEG")
    assert failed(check_rendition(plain.getvalue(), rules, (64, 64))) == ["marked as AI"]


@given(st.text(max_size=300))
def test_any_custom_id_becomes_one_safe_part_of_a_path(text: str) -> None:
    name = safe(text)
    assert name and "/" not in name and "\0" not in name and not name.startswith(".")
    assert Path(name).name == name
    assert len(name.encode(errors="surrogatepass")) <= 180


@pytest.mark.parametrize(
    ("custom_id", "name"),
    [
        ("CON", "CON_"),
        ("nul.png", "nul.png_"),
        ("COM1", "COM1_"),
        ("console", "console"),
        ("A-1.", "A-1"),
        ("A-1. ", "A-1"),
        ("cre\u0300me", "cr\u00e8me"),
        ("A\\1:x", "A_1_x"),
    ],
)
def test_a_name_is_one_on_windows_and_macos_too(custom_id: str, name: str) -> None:
    assert safe(custom_id) == name


def test_templates_fill_their_fields_and_name_unknown_ones() -> None:
    values: dict[str, str | int] = {"custom_id": "Vase/rot", "n": 2}
    assert file_name("out/{custom_id}_{n:03}.jpg", values) == "out/Vase_rot_002.jpg"
    for template in ("{sku}", "{custom_id.__class__}", "{n!r}", "{n", "{n:x y}"):
        with pytest.raises(BadInput):
            file_name(template, values)


def test_flags_win_over_the_channel_and_a_folder_takes_its_file_name(tmp_path: Path) -> None:
    wanted = read_wanted(str(tmp_path), **NOTHING | {"channel": "amazon", "size": "1600", "max_bytes": "1MB"})
    assert (wanted.rendition.width, wanted.rendition.max_bytes) == (1600, 1_000_000)
    assert wanted.rendition.format == "jpeg"
    assert wanted.template(str(tmp_path)) == str(tmp_path / "{custom_id}.MAIN")
    with pytest.raises(BadInput, match="no known ending"):
        read_wanted("out/vase", **NOTHING)


def test_a_users_own_channel_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "chorale" / "channels"
    folder.mkdir(parents=True)
    own = Channel(name="ours", title="Ours", source="us", checked=date(2026, 1, 1))
    (folder / "ours.yaml").write_text(own.model_dump_json())
    assert find_channel("ours") == find_channel(str(folder / "ours.yaml")) == own
    (folder / "bad.yaml").write_text("name: bad\nrendition: {width: many}")
    with pytest.raises(BadInput, match=r"rendition\.width|title"):
        find_channel("bad")
    with pytest.raises(BadInput, match=r"amazon, .*ours"):
        find_channel("nobody")
    with pytest.raises(BadInput):
        find_channel("../channels/ours")


@pytest.mark.parametrize(
    ("text", "count"), [("2MB", 2_000_000), ("500 kB", 500_000), ("2MiB", 2 << 20), ("12", 12)]
)
def test_bytes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MB", "-1", "0", "1e3", "2TB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_bytes(text)
    with pytest.raises(BadInput):
        parse_pixels(text + "x0")
