"""Every kind of image that people have: its pixels are right, or one sentence says why it is refused."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image
from pyvips import Image as Vips

from render.errors import BadInput
from render.rect import Rect
from render.spec.init_image import InitImage, open_image
from tests.support.mangled_images import mangled, png_bomb


def _pixels(path: Path) -> Any:
    source = open_image(path)
    return source.pixels(
        Rect(y=0, x=0, height=source.height, width=source.width), source.width, source.height
    )


def _vips(pixels: Any, interpretation: str) -> Any:
    return Vips.new_from_array(pixels).copy(interpretation=interpretation)


@pytest.mark.parametrize(("kind", "top", "name"), [(np.uint8, 255, "srgb"), (np.uint16, 65535, "rgb16")])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_what_is_transparent_is_white_at_any_depth(
    kind: Any, top: int, name: str, ending: str, tmp_path: Path
) -> None:
    pixels = np.zeros((64, 64, 4), kind)
    pixels[16:48, 16:48] = [top * 6 // 10, top // 5, top // 5, top]
    _vips(pixels, name).write_to_file(str(tmp_path / f"cut.{ending}"))
    found = _pixels(tmp_path / f"cut.{ending}")
    assert (found[:16] == 255).all() and found[32, 32].tolist() == [153, 51, 51]
    assert InitImage.is_transparent(tmp_path / f"cut.{ending}")


def test_gray_of_16_bits_with_transparency(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 2), np.uint16)
    pixels[16:48, 16:48] = [30000, 65535]
    _vips(pixels, "grey16").write_to_file(str(tmp_path / "cut.png"))
    found = _pixels(tmp_path / "cut.png")
    assert (found[:16] == 255).all() and abs(int(found[32, 32, 0]) - 117) <= 1


def test_an_alpha_channel_that_is_full_is_no_transparency(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (1, 2, 3, 255)).save(tmp_path / "full.png")
    Image.new("RGB", (32, 32), (1, 2, 3)).save(tmp_path / "none.png")
    Image.new("P", (32, 32)).save(tmp_path / "palette.png", transparency=0)
    found = [InitImage.is_transparent(tmp_path / f"{name}.png") for name in ("full", "none", "palette")]
    assert found == [False, False, True]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_and_mirrored_upright(orientation: int, tmp_path: Path) -> None:
    quarters = Image.new("RGB", (80, 48), (200, 30, 30))
    quarters.paste((30, 30, 200), (40, 0, 80, 48))
    quarters.paste((30, 200, 30), (0, 24, 40, 48))
    tag = Image.Exif()
    tag[0x112] = orientation
    quarters.save(tmp_path / "tagged.png", exif=tag)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "tagged.png")))
    assert np.array_equal(_pixels(tmp_path / "tagged.png"), upright)


def test_profiles_are_applied(tmp_path: Path) -> None:
    red = _vips(np.full((16, 16, 3), (200, 60, 40), np.uint8), "srgb")
    red.icc_transform("p3", input_profile="srgb").write_to_file(str(tmp_path / "p3.png"))
    red.icc_transform("cmyk", input_profile="srgb").write_to_file(str(tmp_path / "cmyk.tif"))
    red.colourspace("lab").write_to_file(str(tmp_path / "lab.tif"))
    assert np.abs(_pixels(tmp_path / "p3.png")[8, 8].astype(int) - (200, 60, 40)).max() <= 2
    assert np.abs(_pixels(tmp_path / "lab.tif")[8, 8].astype(int) - (200, 60, 40)).max() <= 2
    # What a press cannot print is lost on the way to CMYK, so only the hue is as it was.
    printed = _pixels(tmp_path / "cmyk.tif")[8, 8].astype(int)
    assert printed[0] > 150 and printed[0] > 2 * printed[1] > printed[2]


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_without_a_profile_is_refused(form: str, tmp_path: Path) -> None:
    Image.new("CMYK", (32, 32)).save(tmp_path / "print", form)
    with pytest.raises(BadInput, match="is in CMYK without a profile; convert it to sRGB first"):
        open_image(tmp_path / "print")


@pytest.mark.parametrize("kind", [np.float32, np.uint32, np.int16])
def test_numbers_without_a_white_are_refused(kind: Any, tmp_path: Path) -> None:
    pyvips.Image.new_from_array(np.full((32, 32, 3), 1, kind)).write_to_file(str(tmp_path / "scene.tif"))
    with pytest.raises(BadInput, match="whose white is not known; save it with 8 or 16 bits"):
        open_image(tmp_path / "scene.tif")


def test_more_channels_than_colors_are_refused(tmp_path: Path) -> None:
    pyvips.Image.new_from_array(np.zeros((32, 32, 6), np.uint8)).write_to_file(str(tmp_path / "six.tif"))
    with pytest.raises(BadInput, match="has 6 channels"):
        open_image(tmp_path / "six.tif")


def test_one_page_of_several_has_to_be_named_but_a_pyramid_is_one_image(tmp_path: Path) -> None:
    page = Image.radial_gradient("L").convert("RGB")
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page.rotate(90)])
    with pytest.raises(BadInput, match="has 2 pages; save the one you mean as a file of its own"):
        open_image(tmp_path / "pages.tif")
    large = Vips.new_from_array(np.zeros((900, 1201, 3), np.uint8)).copy(interpretation="srgb")
    large.write_to_file(str(tmp_path / "pyramid.tif"), tile=True, pyramid=True)
    assert open_image(tmp_path / "pyramid.tif").width == 1201


def test_avif_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "small.avif", quality=95)
    found = _pixels(tmp_path / "small.avif")
    assert found.shape == (48, 64, 3) and np.abs(found[20, 20].astype(int) - (200, 30, 30)).max() <= 6


def test_a_wrong_ending_is_told_and_the_content_read(tmp_path: Path, caplog: Any) -> None:
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "photo.jpg", "PNG")
    assert _pixels(tmp_path / "photo.jpg")[0, 0].tolist() == [200, 30, 30]
    assert "is a png file by its content" in caplog.text


@pytest.mark.parametrize(
    ("width", "height", "interlaced", "words"),
    [
        (60_000, 60_000, False, "as no photograph does"),
        (131_072, 131_072, False, "is 131072x131072 pixels; use at most 4294 megapixels"),
        (9000, 9000, True, "as no photograph does"),
    ],
)
def test_bombs_are_refused_by_their_header(
    width: int, height: int, interlaced: bool, words: str, tmp_path: Path
) -> None:
    (tmp_path / "bomb.png").write_bytes(png_bomb(width, height, interlaced=interlaced))
    with pytest.raises(BadInput, match=words):
        open_image(tmp_path / "bomb.png")


def test_a_file_that_was_edited_is_read_anew(tmp_path: Path) -> None:
    for value in (10, 200):
        Image.new("RGB", (64, 48), (value, 0, 0)).save(tmp_path / "a.png")
        assert _pixels(tmp_path / "a.png")[0, 0, 0] == value


def test_folders_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(BadInput, match="is empty"):
        open_image(tmp_path / "empty.png")
    with pytest.raises(BadInput, match="is not a file"):
        open_image(tmp_path)


def test_mangled_files_get_one_sentence_and_little_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sentences = []
    for seed in range(300):
        name, data = mangled(seed)
        (tmp_path / name).write_bytes(data)
        try:
            open_image(tmp_path / name)
        except BadInput as exc:
            sentences.append(str(exc))
    assert len(sentences) > 150 and not any("\n" in each for each in sentences)
    # In KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20
