"""Pictures under the names of others: refused by name, or shown in their own colors."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from render.errors import BadInput
from render.rect import Rect
from render.spec.image_pixels import to_srgb
from render.spec.init_image import open_image

RED = (200, 30, 30)


def _pixels(path: Path) -> Any:
    source = open_image(path)
    return source.pixels(
        Rect(y=0, x=0, height=source.height, width=source.width), source.width, source.height
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    rows = (b"\0" + bytes(RED) * 16) * 16
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    extra = b"".join(_chunk(name, data) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + extra + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _tiff(*tags: tuple[int, int]) -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "a HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "a HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0" + bytes(99), "a raw file of a camera"),
        (b"8BPS\0\1" + bytes(99), "a Photoshop document"),
        (b"BM" + bytes(99), "a BMP"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\n<!DOCTYPE HTML><title>404</title>", "a web page"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "a raw file of a camera"),
        (_tiff((50706, 1)), "a raw file of a camera"),
        (_tiff((254, 1), (330, 8)), "a raw file of a camera"),
    ],
)
def test_other_kinds_are_named(data: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(data)
    with pytest.raises(BadInput, match=f"is {kind}, which is not read; convert it to png, jpeg"):
        open_image(tmp_path / "photo.jpg")


def test_a_pointer_and_a_tiff_of_other_colors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 9\n")
    with pytest.raises(BadInput, match="run git lfs pull"):
        open_image(tmp_path / "a.png")
    Image.new("RGB", (16, 16), RED).convert("YCbCr").save(tmp_path / "a.tif")
    with pytest.raises(BadInput, match="is in YCbCr without JPEG compression; save it in RGB"):
        open_image(tmp_path / "a.tif")
    Image.new("RGB", (16, 16), RED).save(tmp_path / "b.tif", compression="jpeg", quality=95)
    assert np.abs(_pixels(tmp_path / "b.tif")[8, 8].astype(int) - RED).max() <= 6


@pytest.mark.parametrize(
    ("chunk", "problem"),
    [
        ((b"gAMA", struct.pack(">I", 100_000)), "has a gamma of 1 and no profile"),
        ((b"cICP", bytes([9, 16, 0, 1])), "cICP"),
        ((b"acTL", struct.pack(">II", 3, 0)), "is animated"),
    ],
)
def test_a_png_of_other_colors_or_frames_is_refused(
    chunk: tuple[bytes, bytes], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(_png(chunk))
    with pytest.raises(BadInput, match=problem):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"gAMA", struct.pack(">I", 45_455))],
        [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100_000))],
        [(b"cICP", bytes([1, 13, 0, 1]))],
        [(b"acTL", struct.pack(">II", 1, 0))],
    ],
)
def test_a_png_for_a_screen_is_read(chunks: list[tuple[bytes, bytes]], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(*chunks))
    assert _pixels(tmp_path / "a.png")[8, 8].tolist() == list(RED)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_in_a_profile_for_colors_is_gray(mode: str, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(np.full((16, 16), 30_840, np.uint16))
    if mode != "I;16":
        image = Image.new(mode, (16, 16), 120 if mode == "L" else (120, 255))
    image.save(tmp_path / "gray.png", icc_profile=profile)
    assert np.abs(_pixels(tmp_path / "gray.png")[8, 8].astype(int) - 120).max() <= 1


def test_a_profile_for_other_channels_is_passed_over(tmp_path: Path) -> None:
    red = pyvips.Image.new_from_array(np.full((16, 16, 3), RED, np.uint8)).copy(interpretation="srgb")
    press = red.icc_transform("cmyk", input_profile="srgb")
    Image.new("RGB", (16, 16), RED).save(tmp_path / "a.png", icc_profile=press.get("icc-profile-data"))
    assert _pixels(tmp_path / "a.png")[8, 8].tolist() == list(RED)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("CMYK", (16, 16)).save(tmp_path / "a.jpg", icc_profile=profile)
    with pytest.raises(BadInput, match="CMYK without a profile"):
        open_image(tmp_path / "a.jpg")


def test_a_jpeg_with_a_gain_map_is_its_picture(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), RED).save(tmp_path / "base.jpg", quality=95)
    pyvips.Image.new_from_file(str(tmp_path / "base.jpg")).colourspace("scrgb").uhdrsave(
        str(tmp_path / "phone.jpg")
    )
    expected = to_srgb(pyvips.Image.jpegload(str(tmp_path / "phone.jpg"))).numpy()
    assert np.array_equal(_pixels(tmp_path / "phone.jpg"), expected)


def test_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/vase\xff.png"
    with open(name, "wb") as file:
        file.write(_png())
    with pytest.raises(BadInput, match="is not a path in UTF-8; rename the file") as caught:
        open_image(Path(os.fsdecode(name)))
    str(caught.value).encode()
