"""Init images: an area is read as if the whole were read, and a broken file is refused with one sentence."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from render.errors import BadInput, RenderFailed
from render.plan.geometry import Rect
from render.spec import Spec
from render.spec.init_image import open_image


@pytest.fixture(scope="module")
def source_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "noise.png"
    pixels = np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@given(st.data())
def test_an_area_is_cut_from_the_whole(source_file: Path, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(20, 300)), data.draw(st.integers(20, 300))
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    area = Rect(
        y=y, x=x, height=data.draw(st.integers(1, height - y)), width=data.draw(st.integers(1, width - x))
    )
    source = open_image(source_file)
    whole = source.pixels(Rect(y=0, x=0, height=height, width=width), width, height)
    assert np.array_equal(source.pixels(area, width, height), whole[area.slices])


def test_at_its_own_size_an_image_is_unchanged(source_file: Path) -> None:
    found = open_image(source_file).pixels(Rect(y=0, x=0, height=90, width=120), 120, 90)
    assert np.array_equal(found, np.asarray(Image.open(source_file)))


def _save(path: Path, kind: str) -> Path:
    image = Image.new("RGB", (64, 48), (200, 10, 10))
    if kind == "animated":
        frames = [Image.new("RGB", (64, 48), (0, 0, value)) for value in (0, 90, 250)]
        frames[0].save(path, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    elif kind == "cmyk":
        image.convert("CMYK").save(path, "JPEG")
    elif kind == "gif":
        image.save(path, "GIF")
    elif kind == "cut short":
        noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
        Image.fromarray(noise).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:30_000])
    elif kind == "text":
        path.write_text("this is not an image")
    elif kind == "enormous":
        Image.new("1", (131_080, 8)).save(path, "PNG")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("animated", "is animated"),
        ("cmyk", "is in CMYK"),
        ("gif", "is not a png, jpeg, webp, tiff or avif"),
        ("cut short", "is not a valid image"),
        ("text", "is not a png, jpeg, webp, tiff or avif"),
        ("enormous", "is 131080x8 pixels; use at most 131072 a side"),
        ("missing", "cannot be read"),
    ],
)
def test_broken_files_are_refused(kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        open_image(_save(tmp_path / "picture", kind))
    assert "\n" not in str(refused.value)


def test_transparency_becomes_white_and_orientation_is_applied(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (32, 16), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    found = open_image(tmp_path / "clear.png").pixels(Rect(y=0, x=0, height=16, width=32), 32, 16)
    assert found.min() == 255
    turned = Image.new("RGB", (32, 16))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    source = open_image(tmp_path / "turned.jpg")
    assert (source.width, source.height) == (16, 32)


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    source = open_image(tmp_path / "a.png")
    Image.new("RGB", (64, 48), (1, 2, 3)).save(tmp_path / "a.png")
    with pytest.raises(RenderFailed, match="has changed"):
        source.pixels(Rect(y=0, x=0, height=48, width=64), 64, 48)


def test_the_digest_depends_on_the_bytes_and_not_on_the_path(source_file: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.png").write_bytes(source_file.read_bytes())
    paths = (source_file, tmp_path / "copy.png")
    here, there = (Spec.from_mapping({"prompt": "a vase", "init": str(path)}) for path in paths)
    assert (here.width, here.height) == (120, 88)
    assert here.digest("m") == there.digest("m") != Spec(prompt="a vase", width=120, height=88).digest("m")


def test_an_image_of_another_shape_is_refused(source_file: Path) -> None:
    with pytest.raises(BadInput, match="another shape than 512x512; use --size 512x384"):
        Spec.from_mapping({"prompt": "a vase", "init": str(source_file), "width": 512, "height": 512})
