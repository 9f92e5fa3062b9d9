"""Image files as they come out of broken transfers, broken programs and bad intentions: for fuzzing."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

_SIDE = 96


@cache
def whole_files() -> dict[str, bytes]:
    """Sound files of every kind that is read, and of some that are not, by a name."""
    draw = np.random.default_rng(5)
    noise = Image.fromarray(draw.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8))
    clear = noise.copy()
    clear.putalpha(Image.linear_gradient("L").resize(noise.size))
    deep = Image.fromarray(draw.integers(0, 65536, (_SIDE, _SIDE)).astype(np.uint16))
    frames = [noise.rotate(90 * turn) for turn in (1, 2, 3)]
    return {
        "rgb.png": _saved(noise, "PNG"),
        "rgba.png": _saved(clear, "PNG"),
        "palette.png": _saved(noise.quantize(16), "PNG"),
        "gray16.png": _saved(deep, "PNG"),
        "base.jpg": _saved(noise, "JPEG"),
        "progressive.jpg": _saved(noise, "JPEG", progressive=True),
        "cmyk.jpg": _saved(noise.convert("CMYK"), "JPEG"),
        "lossy.webp": _saved(noise, "WEBP"),
        "clear.webp": _saved(clear, "WEBP", lossless=True),
        "animated.webp": _saved(noise, "WEBP", save_all=True, append_images=frames),
        "raw.tif": _saved(noise, "TIFF"),
        "lzw.tif": _saved(noise, "TIFF", compression="tiff_lzw"),
        "deflate.tif": _saved(deep, "TIFF", compression="tiff_deflate"),
        "jpeg.tif": _saved(noise, "TIFF", compression="jpeg"),
        "pages.tif": _saved(noise, "TIFF", save_all=True, append_images=frames),
        "small.avif": _saved(noise, "AVIF"),
        "still.gif": _saved(noise, "GIF"),
        "still.bmp": _saved(noise, "BMP"),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="90000" height="90000"/>',
        "page.html": b"<!doctype html><title>404</title>",
    }


def mangled(seed: int) -> tuple[str, bytes]:
    """(name, content) of a file that is not as it was: cut, overwritten, enlarged in its header, doubled."""
    draw = random.Random(seed)
    name = draw.choice(sorted(whole_files()))
    data = bytearray(whole_files()[name])
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = draw.choice((_cut, _overwritten, _zeroed, _doubled, _large_numbers, _bomb))(data, draw)
    return name, bytes(data)


def png_bomb(width: int, height: int, *, interlaced: bool = False) -> bytes:
    """A small PNG whose header says that it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, int(interlaced))
    lines = zlib.compress(bytes(1 << 16), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", lines) + _chunk(b"IEND", b"")


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _cut(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data) + 1)]


def _overwritten(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.choice((1, 3, 30))):
        if data:
            data[draw.randrange(len(data))] = draw.randrange(256)
    return data


def _zeroed(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(data) + 1)
    end = min(len(data), start + draw.choice((4, 64, 4096)))
    data[start:end] = bytes(end - start)
    return data


def _doubled(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start : start + 512] + data[start:]


def _large_numbers(data: bytearray, draw: random.Random) -> bytearray:
    """Sizes and counts stand near a file's beginning (or, in a TIFF, its end)."""
    if len(data) > 8:
        ends = draw.choice(((0, min(len(data), 200)), (max(0, len(data) - 300), len(data))))
        at = draw.randrange(*ends)
        data[at : at + 4] = draw.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x01\x00\x00"))
    return data


def _bomb(data: bytearray, draw: random.Random) -> bytearray:
    if data[1:4] != b"PNG":
        return data
    sides = [draw.choice((96, 4000, 30_000, 120_000, 2**31 - 1)) for _ in range(2)]
    return bytearray(png_bomb(*sides, interlaced=draw.random() < 0.5))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
