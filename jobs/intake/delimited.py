"""CSV and TSV files as spreadsheets write them: four separators, `sep=`, CR line ends, multi-line cells."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import TextIO

from jobs.intake.encoding import find_encoding
from jobs.intake.raw_rows import RawRow, Reading, Table, cells_to_values, header, is_header
from render.errors import BadInput

_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_SEP_LINE = re.compile(r'"?sep=(\\t|.)"?[,;\t]*\s*', re.IGNORECASE)
_SAMPLE_LINES = 30
_KEPT_TEXT = re.compile('="((?:[^"]|"")*)"')
_GUARDS = ("=", "'")
_GUARDED = re.compile(r"'(?:[=+@-]|\d+$)")


def open_delimited(reading: Reading, files: ExitStack) -> Table:
    """Read the header of a CSV or TSV file, which `files` closes. Raises `BadInput` and `OSError`."""
    path = reading.path
    encoding = find_encoding(path, reading.encoding)
    file = files.enter_context(path.open(newline="", encoding=encoding.codec))
    lines = _Lines(file)
    separator = _told_separator(lines) or _find_separator(lines, path)
    records = csv.reader(lines, delimiter=separator, strict=True)
    columns = _header(records, path)
    notes = [encoding.note] if encoding.note else []
    if separator != ("\t" if path.suffix.lower() in (".tsv", ".tab") else ","):
        notes.append(f"read with {_SEPARATORS.get(separator, repr(separator))} between columns")
    return Table(rows=_rows(lines, records, columns, separator), columns=columns, notes=notes)


class _Lines:
    """The lines of a file, which can be given back: a wrong quote must not hide the lines after it."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._again = file, deque[str]()
        self.number = 0
        self.taken: list[str] = []
        """Lines since `begin`."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._file)
        self.number += 1
        self.taken.append(line)
        return line

    def begin(self) -> int:
        """Begin a record; the number of its first line."""
        self.taken = []
        return self.number + 1

    def give_back(self, keep: int) -> None:
        """Give back all lines of this record but the first `keep`."""
        self._again.extendleft(reversed(self.taken[keep:]))
        self.number -= len(self.taken) - keep
        self.taken = self.taken[:keep]


def _told_separator(lines: _Lines) -> str | None:
    """The separator of a first line `sep=;`, which spreadsheets read and write."""
    lines.begin()
    first = next(lines, "")
    match = _SEP_LINE.fullmatch(first)
    if match is None:
        lines.give_back(0)
    return match and match[1].replace("\\t", "\t")


def _find_separator(lines: _Lines, path: Path) -> str:
    """The separator that splits the header and most of the first lines into equally many columns."""
    lines.begin()
    sample = list(islice(lines, _SAMPLE_LINES))
    lines.give_back(0)
    first = next((line for line in sample if line.strip()), "")
    found = [mark for mark in _SEPARATORS if mark in re.sub('"[^"]*"', "", first)]
    if not found:
        return "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    return max(found, key=lambda mark: _fit(sample, mark))


def _fit(sample: list[str], separator: str) -> tuple[float, int]:
    """How well a separator fits: the share of lines with as many cells as the header, and their number."""
    widths = []
    records = csv.reader(sample, delimiter=separator)
    with suppress(csv.Error):
        widths = [len(cells) for cells in records if any(cells)]
    return (widths.count(widths[0]) / len(widths), widths[0]) if widths else (0.0, 0)


def _header(records: Iterator[list[str]], path: Path) -> tuple[str, ...]:
    try:
        columns = next((header(cells) for cells in records if any(cell.strip() for cell in cells)), ())
    except csv.Error as exc:
        raise BadInput("batch", str(path), f"has an invalid header ({exc}); check its quotes") from exc
    if not columns:
        raise BadInput("batch", str(path), "is empty; its first line must name the columns")
    return columns


def _rows(
    lines: _Lines, records: Iterator[list[str]], columns: tuple[str, ...], separator: str
) -> Iterator[RawRow]:
    while True:
        line = lines.begin()
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as exc:
            lines.give_back(1)
            yield line, BadInput("quotes", None, f"are not valid CSV ({_reason(exc)}); {_QUOTES}")
            continue
        texts = [cell.strip() for cell in cells]
        if not any(texts):
            continue
        if len(lines.taken) > 1 and _swallows_rows(lines.taken, columns, separator):
            lines.give_back(1)
            yield line, BadInput("quotes", None, f"open a cell that takes in the next lines; {_QUOTES}")
            continue
        texts = [_meant(text) if text[:1] in _GUARDS else text for text in texts]
        if len(lines.taken) > 1:
            # Whatever ends the lines of the file.
            texts = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
        if is_header(columns, texts):
            yield line, BadInput("row", None, "repeats the header; delete it")
            continue
        yield line, cells_to_values(columns, texts)


def _meant(text: str) -> str:
    """The text of a cell without what keeps spreadsheets from changing it: ="00510" and '00510 are 00510."""
    if (kept := _KEPT_TEXT.fullmatch(text)) is not None:
        return kept[1].replace('""', '"')
    return text[1:] if _GUARDED.match(text) else text


_QUOTES = 'write a quote inside a quoted value twice, as in "12"" vase"'


def _reason(exc: csv.Error) -> str:
    if "unexpected end" in str(exc):
        return "a quoted value does not end"
    return "text after a closing quote" if "expected after" in str(exc) else str(exc)


def _swallows_rows(taken: list[str], columns: tuple[str, ...], separator: str) -> bool:
    """Whether each line of a record of several lines looks like a row of its own: a quote is out of place.

    An inch sign before a word opens a cell that ends at the next one, rows later, and all looks valid.
    """
    return len(columns) > 1 and all(line.count(separator) == len(columns) - 1 for line in taken)
