"""What a sheet says of its rows beside their cells: formulas without values, hidden rows, merged cells.

openpyxl reads none of it while it reads row by row, so the sheet's part is searched for it once.
"""

from __future__ import annotations

import re
import zipfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.intake.raw_rows import Reading
from jobs.intake.workbook_size import SheetSize
from render.errors import BadInput

_NEVER_CALCULATED = re.compile(
    rb'<c\s(?![^>]*t="str")[^>]*?r="([A-Z]+\d+)"[^>]*>\s*<f[^>]*?(?:/>|>[^<]*</f>)\s*'
    rb"(?:<v\s*/>|<v>\s*</v>)?\s*</c>"
)
"""A cell with a formula and without its value, as programs write it."""
_HIDDEN = re.compile(rb'<(?:\w+:)?row(?=\s[^>]*?\bhidden="(?:1|true)")[^>]*?\sr="(\d+)"')
_MERGED = re.compile(rb'<mergeCell\s[^>]*?ref="([A-Z]+)(\d+):([A-Z]+)(\d+)"')
_OVERLAP = 4096
_SHOWN = 5
_MOST_MERGED = 10_000


@dataclass(frozen=True)
class Merged:
    """Cells that are shown as one, with the value of the first."""

    name: str
    column: int
    """From 0."""
    top: int
    bottom: int


@dataclass(frozen=True, kw_only=True)
class SheetLayout:
    """Hidden rows by their numbers, and merged cells."""

    hidden: frozenset[int]
    merged: tuple[Merged, ...]


class MergedCells:
    """Gives each row the values of merged cells that reach down to it, as a person sees them."""

    def __init__(self, merged: Iterable[Merged], columns: int) -> None:
        down = (each for each in merged if each.top < each.bottom and each.column < columns)
        self._waiting = deque(sorted(down, key=lambda each: each.top))
        self._open: dict[Merged, Any] = {}
        self.note = ""
        """What the user should know."""

    def fill(self, line: int, texts: list[Any]) -> None:
        """Fill in the empty cells of a row; rows come in their order."""
        self._open = {area: value for area, value in self._open.items() if area.bottom >= line}
        for area, value in self._open.items():
            if texts[area.column] == "" and value != "":
                texts[area.column] = value
                self.note = self.note or f"merged cells count for each of their rows, as {area.name}"
        while self._waiting and self._waiting[0].top <= line:
            area = self._waiting.popleft()
            if area.top == line:
                self._open[area] = texts[area.column]


def hidden_note(lines: Sequence[int]) -> str:
    """What the user should know of hidden rows that were read; empty if there are none."""
    if not lines:
        return ""
    shown = ", ".join(map(str, lines[:_SHOWN]))
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"hidden rows are read too (lines {shown}{more}); delete those that are not meant"


def read_layout(reading: Reading, part_name: str) -> SheetLayout:
    """Search a sheet's part; raises `BadInput` for a formula without a value, too many merged cells, and a
    sheet that is too large."""
    hidden: set[int] = set()
    merged: dict[bytes, Merged] = {}
    with zipfile.ZipFile(reading.path) as package, package.open(part_name) as part:
        rest, sizes = b"", SheetSize(reading)
        while chunk := part.read(1 << 20):
            sizes.feed(chunk)
            text = rest + chunk
            if (formula := _NEVER_CALCULATED.search(text)) is not None:
                fix = (
                    f"has no value of the formula in {formula[1].decode()}; save it in a spreadsheet program"
                )
                raise BadInput("batch", str(reading.path), fix)
            hidden.update(int(found[1]) for found in _HIDDEN.finditer(text))
            merged |= {found[0]: _merged(found) for found in _MERGED.finditer(text)}
            rest = text[-_OVERLAP:]
    if len(merged) > _MOST_MERGED:
        raise BadInput("batch", str(reading.path), f"has {len(merged):,} merged areas; unmerge its cells")
    return SheetLayout(hidden=frozenset(hidden), merged=tuple(merged.values()))


def _merged(found: re.Match[bytes]) -> Merged:
    left, top, right, bottom = (part.decode() for part in found.groups())
    column = 0
    for letter in left:
        column = column * 26 + ord(letter) - ord("A") + 1
    return Merged(f"{left}{top}:{right}{bottom}", column - 1, int(top), int(bottom))
