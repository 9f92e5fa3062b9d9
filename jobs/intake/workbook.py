"""XLSX workbooks: the values of one sheet, row by row, as a person sees them."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, datetime, time
from typing import Any

from jobs.intake.raw_rows import RawRow, Reading, Table, cells_to_values, header
from render.errors import BadInput

_MAX_UNPACKED = 400 << 20
"""Bytes of a workbook's parts, unpacked; a few kilobytes can be packed from more than any memory holds."""
_MAX_STRINGS = 60 << 20
"""Bytes of its shared texts, which are held in memory."""
_MAX_COLUMNS = 2000
_EXACT = 10**15
"""A spreadsheet keeps 15 digits of a number and rounds the rest away."""
_ZEROS = re.compile("0+")
_NEVER_CALCULATED = re.compile(
    rb'<c\s(?![^>]*t="str")[^>]*?r="([A-Z]+\d+)"[^>]*>\s*<f[^>]*?(?:/>|>[^<]*</f>)\s*'
    rb"(?:<v\s*/>|<v>\s*</v>)?\s*</c>"
)
"""A cell with a formula and without its value, as programs write it."""


def open_workbook(reading: Reading, files: ExitStack) -> Table:
    """Read the header of a sheet; `files` closes the workbook. Raises `BadInput` and `OSError`."""
    path = reading.path
    _check_package(reading)
    # Not at module level: every command would pay for the import.
    import openpyxl

    # Of extensions that it does not read, such as lists of allowed values; a user can do nothing about them.
    warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except OSError:
        raise
    except Exception as exc:  # openpyxl passes on whatever the broken part made its parsers raise.
        raise _broken(reading, exc) from exc
    files.callback(book.close)
    sheet, notes = _sheet(book, reading)
    _check_formulas(reading, sheet)
    lines = _lines(reading, sheet)
    found = next(((line, cells) for line, cells in lines if any(_text(cell) for cell in cells)), None)
    if found is None:
        raise BadInput("batch", str(path), f"has no rows in its sheet {sheet.title!r}; name one with --sheet")
    columns = header([_text(cell) for cell in found[1]])
    if len(columns) > _MAX_COLUMNS:
        raise BadInput("batch", str(path), f"has more than {_MAX_COLUMNS} columns; remove those without use")
    return Table(rows=_rows(lines, columns), columns=columns, notes=notes)


def _check_package(reading: Reading) -> None:
    """Refuse what is no workbook, or unpacks to more than a workbook of rows ever does."""
    try:
        with zipfile.ZipFile(reading.path) as package:
            parts = package.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as exc:
        raise _broken(reading, exc) from exc
    strings = sum(part.file_size for part in parts if "sharedStrings" in part.filename)
    if strings > _MAX_STRINGS or sum(part.file_size for part in parts) > _MAX_UNPACKED:
        raise BadInput("batch", str(reading.path), "is too large for a workbook; save it as CSV")


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


def _check_formulas(reading: Reading, sheet: Any) -> None:
    with zipfile.ZipFile(reading.path) as package, package.open(sheet._worksheet_path) as part:
        rest = b""
        while chunk := part.read(1 << 20):
            found = _NEVER_CALCULATED.search(rest + chunk)
            if found is not None:
                fix = f"has no value of the formula in {found[1].decode()}; save it in a spreadsheet program"
                raise BadInput("batch", str(reading.path), fix)
            rest = chunk[-4096:]


def _lines(reading: Reading, sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    # Its own count of rows and columns is often wrong, and then rows are left out.
    sheet.reset_dimensions()
    try:
        for number, cells in enumerate(sheet.iter_rows(max_col=_MAX_COLUMNS + 1), 1):
            yield number, list(cells)
    except Exception as exc:  # As above.
        raise _broken(reading, exc) from exc


def _rows(lines: Iterator[tuple[int, list[Any]]], columns: tuple[str, ...]) -> Iterator[RawRow]:
    for line, cells in lines:
        texts = [_text(cell) for cell in cells]
        if not any(texts):
            continue
        wrong = next((cell for cell in cells[: len(columns)] if cell.data_type == "e"), None)
        if wrong is not None:
            name = columns[wrong.column - 1] or str(wrong.column)
            yield line, BadInput(name, wrong.value, "is an error of the spreadsheet; correct the formula")
            continue
        # A sheet stores no cells after the last one with a value.
        texts += [""] * (len(columns) - len(texts))
        yield line, cells_to_values(columns, texts)


def _text(cell: Any) -> str:
    """What a cell shows: whole numbers without a point, `00510` where its format has leading zeros."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        return _number(value, cell.number_format)
    if isinstance(value, datetime):
        return (value.date() if value.time() == time() else value).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value).strip()


def _number(value: float, shown_as: str | None) -> str:
    if abs(value) >= _EXACT:
        return f"{value:.5E}"
    if value != int(value):
        return repr(value)
    digits = str(int(value))
    return digits.zfill(len(shown_as)) if shown_as and _ZEROS.fullmatch(shown_as) else digits
