"""How much a workbook unpacks to: a few kilobytes can be packed from more than any memory holds.

openpyxl holds small parts, such as the styles, and each row of a sheet as a tree of elements, each of which
takes a hundred bytes where its text may be four.
"""

from __future__ import annotations

import re
import zipfile
from xml.parsers import expat

from jobs.intake.raw_rows import Reading
from render.errors import BadInput

_MOST_BYTES = 400 << 20
"""Of all parts, unpacked."""
_MOST_STRINGS = 60 << 20
"""Bytes of the shared texts, which are held in memory."""
_MOST_OTHERS = 16 << 20
"""Bytes of all other parts that are read but for the sheets. Excel's largest table of styles has 10 MB."""
_MOST_ROWS = 1 << 20
"""Of a sheet; Excel's own limit."""
_MOST_IN_A_ROW = 200_000
"""Elements of a row, or of what follows the rows: 2,000 cells have a few each, merged areas are one each."""
_ROW_DEPTH = 2
"""Elements around a row: the worksheet and its data."""
_SHEETS = "xl/worksheets/"
_NOT_READ = (
    "customxml/",
    "xl/calcchain.xml",
    "xl/comments",
    "xl/drawings/",
    "xl/embeddings/",
    "xl/externallinks/",
    "xl/media/",
    "xl/model/",
    "xl/pivotcache/",
    "xl/pivottables/",
    "xl/printersettings/",
    "xl/tables/",
    "xl/threadedcomments/",
    "xl/vbaproject.bin",
)
"""How the names of parts begin that openpyxl leaves alone when it reads row by row."""
_TYPES = "[Content_Types].xml"
_READ_WHOLE = re.compile(rb"<(?:\w+:)?Override\b(?=[^>]*(?:sharedStrings|sheet\.main)\+xml)[^>]*>", re.I)
_PART_NAME = re.compile(rb"""PartName\s*=\s*["']/?([^"']*)""", re.I)


def check_parts(reading: Reading, package: zipfile.ZipFile) -> None:
    """Raise `BadInput` for a package that unpacks to more than a workbook of rows ever does."""
    sizes = {part.filename: part.file_size for part in package.infolist()}
    texts = sum(size for name, size in sizes.items() if "sharedstrings" in name.lower())
    others = sum(size for name, size in sizes.items() if _is_held(name)) - texts
    if sum(sizes.values()) > _MOST_BYTES or texts > _MOST_STRINGS or others > _MOST_OTHERS:
        raise _too_large(reading)
    if _TYPES not in sizes:
        return
    for override in _READ_WHOLE.finditer(package.read(_TYPES)):
        # The names are the package's to choose, and what is read as a whole must not be called a sheet.
        named = _PART_NAME.search(override[0])
        if named is not None and not _is_held(named[1].decode("utf-8", "replace")):
            raise BadInput("batch", str(reading.path), "names its parts as no program does; save it as CSV")


def _is_held(name: str) -> bool:
    return not name.lower().startswith((_SHEETS, *_NOT_READ))


def _too_large(reading: Reading) -> BadInput:
    return BadInput("batch", str(reading.path), "is too large for a workbook; save it as CSV")


class SheetSize:
    """Counts a sheet's rows, and the elements of each, as its bytes come."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._rows = self._elements = self._depth = 0
        self._parser: expat.XMLParserType | None = expat.ParserCreate()
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end

    def feed(self, chunk: bytes) -> None:
        """Raise `BadInput` if it has more than a workbook of rows ever has."""
        if self._parser is None:
            return
        try:
            self._parser.Parse(chunk, False)
        except expat.ExpatError:
            # Whoever reads the rows before this place will tell.
            self._parser = None

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        # One that is called a row and lies within another is a part of it.
        if self._depth == _ROW_DEPTH and name.rpartition(":")[2] == "row":
            self._rows += 1
            self._elements = 0
        self._depth += 1
        self._elements += 1
        if self._elements > _MOST_IN_A_ROW or self._rows > _MOST_ROWS:
            raise _too_large(self._reading)

    def _end(self, name: str) -> None:
        self._depth -= 1
