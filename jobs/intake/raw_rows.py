"""What every reader of a batch file gives: rows as they stand in the file, with their lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from render.errors import BadInput

RawRow = tuple[int, "dict[str, Any] | BadInput"]
"""(line, values by column), or the error in place of a row that cannot be read."""


@dataclass(kw_only=True)
class Table:
    """A file of rows, open for one reading."""

    rows: Iterator[RawRow]
    columns: tuple[str, ...] | None = None
    """Those of the header; None where each row names its own."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about how the file was read. Complete once the rows are read."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the user says about a file."""

    path: Path
    encoding: str | None = None
    sheet: str | None = None
    """Of a workbook; its first visible one if None."""


_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200e\u200f\u2060\u00ad"))
"""What exports and web pages leave in the names of columns."""


def fold_blanks(name: str) -> str:
    """A column's name as a person sees it."""
    return (name if name.isascii() else name.translate(_INVISIBLE)).strip()


def is_header(columns: tuple[str, ...], cells: list[Any]) -> bool:
    """Whether a row is the header again, as in two files that were put together."""
    # The first cell first: this is asked of every row.
    first = fold_blanks(str(cells[0])) if cells else None
    return first == columns[0] and header(cells) == columns


def refuse_row(problem: str) -> BadInput:
    return BadInput("row", None, problem)


def not_names_and_values() -> BadInput:
    return refuse_row("is not names and values; write e.g. prompt: a red vase")


def cells_to_values(columns: tuple[str, ...], cells: list[Any]) -> dict[str, Any] | BadInput:
    """The cells of one line by column; the error of a line with more or fewer cells than the header."""
    while len(cells) > len(columns) and cells[-1] in ("", None):
        cells.pop()
    if len(cells) != len(columns):
        fix = f"do not match the header, which has {len(columns)}; quote values that contain the separator"
        return BadInput("columns", len(cells), fix)
    return dict(zip(columns, cells, strict=True))


def header(names: list[Any]) -> tuple[str, ...]:
    """The names of a header line without surrounding blanks, without signs that nobody sees, and without the
    empty ones at its end."""
    found = [fold_blanks(str(name)) for name in names]
    while found and not found[-1]:
        found.pop()
    return tuple(found)
