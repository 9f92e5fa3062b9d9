"""XLSX workbooks: the values of one sheet, row by row, as a person sees them."""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, datetime, time
from typing import Any

from jobs.intake.number_text import DateText, NumberText, number_text
from jobs.intake.raw_rows import RawRow, Reading, Table, cells_to_values, header, is_header
from jobs.intake.sheet_layout import MergedCells, SheetLayout, hidden_note, read_layout
from jobs.intake.workbook_size import check_parts
from render.errors import BadInput

_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)
"""What zipfile raises for a package that is damaged, or whose parts have a password."""
_MAX_COLUMNS = 2000
_OLE = b"\xd0\xcf\x11\xe0"
"""How files begin that are .xls workbooks, or .xlsx with a password."""
_STRICT = b"http://purl.oclc.org/ooxml/"
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")
"""A control character as Excel writes it into a text: `_x000D_` is a carriage return."""


def open_workbook(reading: Reading, files: ExitStack) -> Table:
    """Read the header of a sheet; `files` closes the workbook. Raises `BadInput` and `OSError`."""
    path = reading.path
    _check_package(reading)
    # Not at module level: every command would pay for the import.
    import openpyxl

    # Of extensions that it does not read, such as lists of allowed values; a user can do nothing about them.
    warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
    except OSError:
        raise
    except Exception as exc:  # openpyxl passes on whatever the broken part made its parsers raise.
        raise _broken(reading, exc) from exc
    files.callback(book.close)
    sheet, notes = _sheet(book, reading)
    try:
        layout = read_layout(reading, sheet._worksheet_path)
    except (*_DAMAGED, KeyError) as exc:
        raise _broken(reading, exc) from exc
    lines = _lines(reading, sheet)
    found = next(((line, cells) for line, cells in lines if any(_text(cell) for cell in cells)), None)
    if found is None:
        raise BadInput("batch", str(path), f"has no rows in its sheet {sheet.title!r}; name one with --sheet")
    columns = header([_text(cell) for cell in found[1]])
    if len(columns) > _MAX_COLUMNS:
        raise BadInput("batch", str(path), f"has more than {_MAX_COLUMNS} columns; remove those without use")
    _check_header(reading, layout, found[0])
    return Table(rows=_rows(lines, columns, layout, notes), columns=columns, notes=notes)


def _check_header(reading: Reading, layout: SheetLayout, line: int) -> None:
    merged = next((each for each in layout.merged if each.top <= line <= each.bottom), None)
    if merged is not None:
        fix = f"has merged cells in its header ({merged.name}); write one name above each column, in one row"
        raise BadInput("batch", str(reading.path), fix)


def _check_package(reading: Reading) -> None:
    """Refuse what is no workbook, or unpacks to more than a workbook of rows ever does."""
    with reading.path.open("rb") as file:
        if file.read(4) == _OLE:
            fix = "has a password or is an .xls under another name; save it as .xlsx without one"
            raise BadInput("batch", str(reading.path), fix)
    try:
        with zipfile.ZipFile(reading.path) as package:
            check_parts(reading, package)
            if "xl/workbook.xml" in package.namelist():
                with package.open("xl/workbook.xml") as part:
                    if _STRICT in part.read(4096):
                        fix = "is a Strict Open XML workbook; save it as an ordinary Excel workbook (.xlsx)"
                        raise BadInput("batch", str(reading.path), fix)
    except _DAMAGED as exc:
        raise _broken(reading, exc) from exc


def _broken(reading: Reading, exc: Exception) -> BadInput:
    reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0][:100]
    return BadInput("batch", str(reading.path), f"is not a workbook ({reason}); save it again")


def _sheet(book: Any, reading: Reading) -> tuple[Any, list[str]]:
    sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    names = ", ".join(sheet.title for sheet in sheets)
    if reading.sheet is not None:
        named = [sheet for sheet in book.worksheets if sheet.title.casefold() == reading.sheet.casefold()]
        if not named:
            raise BadInput("sheet", reading.sheet, f"is not in the workbook; use one of {names}")
        return named[0], []
    if not sheets:
        raise BadInput("batch", str(reading.path), "has no visible sheet; name one with --sheet")
    if len(sheets) == 1:
        return sheets[0], []
    return sheets[0], [f"read the sheet {sheets[0].title!r} of {names}; --sheet names another"]


def _lines(reading: Reading, sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    # Its own count of rows and columns is often wrong, and then rows are left out.
    sheet.reset_dimensions()
    try:
        for number, cells in enumerate(sheet.iter_rows(max_col=_MAX_COLUMNS + 1), 1):
            yield number, list(cells)
    except Exception as exc:  # As above.
        raise _broken(reading, exc) from exc


def _rows(
    lines: Iterator[tuple[int, list[Any]]], columns: tuple[str, ...], layout: SheetLayout, notes: list[str]
) -> Iterator[RawRow]:
    merged, hidden = MergedCells(layout.merged, len(columns)), list[int]()
    for line, cells in lines:
        texts = [_text(cell) for cell in cells]
        if not any(texts):
            continue
        if line in layout.hidden:
            hidden.append(line)
        # A sheet stores no cells after the last one with a value.
        texts += [""] * (len(columns) - len(texts))
        merged.fill(line, texts)
        if is_header(columns, texts):
            yield line, BadInput("row", None, "repeats the header; delete it")
            continue
        yield line, cells_to_values(columns, texts)
    notes += filter(None, [merged.note, hidden_note(hidden)])


def _text(cell: Any) -> Any:
    """What a cell shows: whole numbers without a point, `00510` where its format has leading zeros; the error
    of a cell that holds one."""
    value = cell.value
    if value is None:
        return ""
    if cell.data_type == "e":
        return BadInput("cell", value, "is an error of the spreadsheet; correct the formula")
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        return _number(value, cell.number_format)
    if isinstance(value, datetime):
        return DateText((value.date() if value.time() == time() else value).isoformat())
    if isinstance(value, date | time):
        return DateText(value.isoformat())
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), str(value)).strip()


def _number(value: float, shown_as: str | None) -> NumberText:
    return number_text(value, shown_as or "General")
