"""Which encoding a text file is in: told by a byte order mark or by the user, else UTF-8 or Windows-1252."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from render.errors import BadInput

_CHUNK_BYTES = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FILES = (
    (b"pk\x03\x04", "is a workbook or an archive under another ending; rename a workbook to .xlsx"),
    (b"\xd0\xcf\x11\xe0", "is an .xls workbook under another ending; save it as .xlsx"),
    (b"\x1f\x8b", "is packed by gzip; unpack it"),
    (b"%pdf-", "is a PDF; export the table as CSV"),
    (b"<!doctype", "is a web page; export the table as CSV"),
    (b"<html", "is a web page; export the table as CSV"),
    (b"<table", "is a web page; export the table as CSV"),
    (b"<?xml", "is XML; export the table as CSV"),
)
"""How files begin that are no text of a table, in lower case."""
_SAY = "say which with --encoding, e.g. cp1250, cp1251, mac_roman or shift_jis"
_UNLIKELY = re.compile(
    # Western text has no three letters beyond ASCII in a row (Cyrillic and Chinese read so have), no capital
    # of them inside a word (Mac Roman), and none of these signs next to a letter (Polish, Japanese).
    "[\u0192\u02c6\u02dc\u00c0-\u00ff\u0160\u0161\u017d\u017e\u0152\u0153\u0178]{3}"
    "|[a-z\u00df-\u00ff][\u0160\u017d\u0152\u0178\u00c0-\u00de]"
    "|[A-Za-z][\u00a1\u00a4-\u00a6\u00a8\u00ac\u00af\u00b8\u0192\u2020\u2021\u2030\u02c6]"
    # UTF-8 in which a few bytes are damaged: its letters read as two.
    "|(?<![^\\W\\d_])[\u00c2\u00c3][\u00a0-\u00bf\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d"
    "\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]"
    "|[a-z][\u00bf\u00b5\u00b6](?=[a-z])|[\u00b9\u00b3](?=[A-Za-z\u00c0-\u00ff])"
)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The name of a codec, and what the user should know about how it was found (empty if nothing)."""

    codec: str
    note: str = ""


def find_encoding(path: Path, given: str | None = None) -> Encoding:
    """The encoding of a text file, `given` or found; the file decodes in it from its first byte to its last.

    Raises `BadInput` for an unknown encoding and for a file that it does not fit, and `OSError`.
    """
    if given:
        return _given(path, given)
    with path.open("rb") as file:
        start = file.read(4096)
    for mark, fix in _OTHER_FILES:
        if start.lstrip().lower().startswith(mark):
            raise BadInput("batch", str(path), fix)
    codec = next((codec for mark, codec in _MARKS if start.startswith(mark)), None) or _utf16(start)
    if codec is not None:
        _check(path, codec)
        note = "" if codec == "utf-8-sig" else f"read as {codec.upper()}"
        return Encoding(codec=codec, note=note)
    try:
        _decode(path, "utf-8")
        return Encoding(codec="utf-8")
    except UnicodeDecodeError:
        return _windows_1252(path)


def _given(path: Path, given: str) -> Encoding:
    try:
        found = codecs.lookup(given)
        "".encode(given)
    except (LookupError, ValueError, UnicodeError) as exc:
        raise BadInput("encoding", given, "is unknown; use e.g. utf-8, cp1252, utf-16 or shift_jis") from exc
    codec = "utf-8-sig" if found.name == "utf-8" else found.name
    _check(path, codec)
    return Encoding(codec=codec, note=f"read as {found.name}")


def _check(path: Path, codec: str) -> None:
    try:
        _decode(path, codec)
    except UnicodeError as exc:
        raise BadInput("encoding", codec, f"does not fit {path.name}; {_SAY}") from exc


def _decode(path: Path, codec: str) -> None:
    for _ in _decoded(path, codec):
        pass


def _decoded(path: Path, codec: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(codec)()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _utf16(start: bytes) -> str | None:
    """UTF-16 without a mark: every other byte of Western text is 0."""
    even, odd = start[0::2].count(0), start[1::2].count(0)
    if max(even, odd) * 5 < len(start) or not start:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _windows_1252(path: Path) -> Encoding:
    example = ""
    try:
        with path.open(encoding="cp1252", newline="") as file:
            for line in file:
                if line.isascii():
                    continue
                if _UNLIKELY.search(line):
                    raise BadInput("batch", str(path), f"is neither UTF-8 nor Windows-1252 text; {_SAY}")
                example = example or _word(line)
    except UnicodeDecodeError as exc:
        raise BadInput("batch", str(path), f"is neither UTF-8 nor Windows-1252 text; {_SAY}") from exc
    note = f'read as Windows-1252 (as in "{example}"); if that is wrong, {_SAY}'
    return Encoding(codec="cp1252", note=note)


def _word(line: str) -> str:
    """The first word of a line that is not ASCII."""
    return next((word for word in re.findall(r"[^\s,;\t|\"]+", line) if not word.isascii()), line.strip())[
        :40
    ]
