"""What a file is by its first bytes, where libvips would say little of it or read it for something else."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

_BEGINNINGS = (
    (b"8BPS", "a Photoshop document"),
    (b"%PDF", "a PDF"),
    (b"BM", "a BMP"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000"),
    (b"\x76\x2f\x31\x01", "an OpenEXR"),
    (b"FUJIFILMCCD-RAW", "a raw file of a camera"),
    (b"IIRO", "a raw file of a camera"),
    (b"IIRS", "a raw file of a camera"),
    (b"IIU\0", "a raw file of a camera"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"PK\x03\x04", "an archive"),
)
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "a HEIC"),
    b"crx ": "a raw file of a camera",
    b"qt  ": "a video",
    **dict.fromkeys((b"isom", b"mp41", b"mp42", b"M4V "), "a video"),
}
"""Of the formats that begin with a box `ftyp`."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_PNG = b"\x89PNG\r\n\x1a\n"
_SRGB_GAMMA = range(44_000, 47_001)
"""gAMA of an image for a screen, times 100,000."""
_SRGB_CODES = ((1, 13), (1, 1), (1, 6))
"""(primaries, transfer) of a cICP chunk that are sRGB, or BT.709 as programs write it for sRGB."""
_DNG_VERSION, _SUBFILE, _SUB_IFDS, _PHOTOMETRIC, _COMPRESSION = 50706, 254, 330, 262, 259
_SHORT, _YCBCR, _JPEG = 3, 6, 7
_MOST_CHUNKS = 1000


def is_pointer(path: Path) -> bool:
    """Whether git-lfs has not fetched the file yet."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def other_kind(path: Path) -> str | None:
    """What a file is that is no picture of a kind that is read; None for any other."""
    with path.open("rb") as file:
        begin = file.read(64)
        if begin[4:8] == b"ftyp":
            brands = begin[8:12], *(begin[place : place + 4] for place in range(16, 60, 4))
            return None if b"avif" in brands or b"avis" in brands else _kind_of_brands(brands)
        text = begin.lstrip()
        for mark, kind in _BEGINNINGS:
            if begin.startswith(mark) or (mark.startswith(b"<") and text.lower().startswith(mark)):
                return kind
        if begin[:4] in (b"II*\0", b"MM\0*") and (begin[8:10] == b"CR" or _is_raw(path)):
            return "a raw file of a camera"
    return None


def _kind_of_brands(brands: Sequence[bytes]) -> str | None:
    """By the first brand that tells: that of the file, then those that it is compatible with."""
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)


def png_problem(path: Path) -> str | None:
    """Why a PNG would be shown in other colors, or in part; None for others."""
    chunks = dict(_png_chunks(path))
    if len(frames := chunks.get(b"acTL", b"")) >= 4 and struct.unpack(">I", frames[:4])[0] > 1:
        return "is animated; save one of its frames as a png"
    code = chunks.get(b"cICP", b"")
    if len(code) >= 2 and (code[0], code[1]) not in _SRGB_CODES:
        return "is in other colors than sRGB by its cICP chunk; save it in sRGB, or with an ICC profile"
    gamma = chunks.get(b"gAMA", b"")
    if len(gamma) == 4 and not chunks.keys() & {b"iCCP", b"sRGB", b"cICP"}:
        value = struct.unpack(">I", gamma)[0]
        if value not in _SRGB_GAMMA:
            return f"has a gamma of {value / 100_000:g} and no profile; save it in sRGB"
    return None


def _png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Names and beginnings of the chunks before the pixels."""
    with path.open("rb") as file:
        if file.read(8) != _PNG:
            return
        for _ in range(_MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IDAT":
                return
            (length,) = struct.unpack(">I", head[:4])
            yield head[4:], file.read(min(length, 16))
            file.seek(length - min(length, 16) + 4, 1)


def tiff_problem(path: Path) -> str | None:
    """Why libvips would show a TIFF in other colors; None for others."""
    tags = _tiff_tags(path)
    if tags.get(_PHOTOMETRIC) == _YCBCR and tags.get(_COMPRESSION) != _JPEG:
        return "is in YCbCr without JPEG compression; save it in RGB"
    return None


def _is_raw(path: Path) -> bool:
    """Whether a TIFF is a DNG, or another camera's file whose first picture is a thumbnail of the raw one."""
    tags = _tiff_tags(path)
    return _DNG_VERSION in tags or (bool(tags.get(_SUBFILE, 0) & 1) and _SUB_IFDS in tags)


def _tiff_tags(path: Path) -> dict[int, int]:
    """The tags of the first picture of a TIFF, with the values that are one number."""
    with path.open("rb") as file:
        mark = file.read(4)
        if mark not in (b"II*\0", b"MM\0*"):
            return {}
        order = "<" if mark[:2] == b"II" else ">"
        (offset,) = struct.unpack(order + "I", file.read(4).ljust(4, b"\0"))
        file.seek(offset)
        (count,) = struct.unpack(order + "H", file.read(2).ljust(2, b"\0"))
        table = file.read(min(count, 1000) * 12)
    tags: dict[int, int] = {}
    for place in range(0, len(table) - 11, 12):
        tag, kind = struct.unpack(order + "HH", table[place : place + 4])
        form = "H" if kind == _SHORT else "I"
        (tags[tag],) = struct.unpack_from(order + form, table, place + 8)
    return tags
