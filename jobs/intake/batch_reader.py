"""Reads a batch file: its rows become specs, and bad rows are reported by line.

The columns of a row are the fields of a spec (`prompt`, `seed`, `steps`, ...), `size` as WIDTHxHEIGHT,
`custom_id`, its owner's name for it, and `require_tag`, what its nodes must have. A template builds the
prompt from the other columns. An empty cell stands for the default.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.intake.cells import cell_text, check_no_error, check_rounded_id, parse_cell
from jobs.intake.columns import Columns
from jobs.intake.expansion import Expansion
from jobs.intake.number_text import DateText
from jobs.intake.open_table import open_table
from jobs.intake.options import CUSTOM_ID, REQUIRE_TAG, IntakeOptions, is_random
from jobs.intake.raw_rows import Reading, fold_blanks
from jobs.intake.row_images import RowImages
from jobs.tags import parse_tags
from render.errors import BadInput
from render.spec import FILE_FIELDS, IMAGE_FIELDS, Spec, beside, expand_size, names_file


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a batch, checked."""

    line: int
    custom_id: str
    spec: Spec
    require_tag: tuple[str, ...] | None = None
    """Tags that its nodes must have; None for those of the submission."""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be rendered, and the reason in one sentence."""

    line: int
    custom_id: str | None
    field: str
    problem: str

    @property
    def kind(self) -> str:
        """Equal for rows with the same problem and other values."""
        return self.field + re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "", self.problem)

    @classmethod
    def of(cls, line: int, custom_id: str | None, error: BadInput) -> BadRow:
        return cls(line=line, custom_id=custom_id, field=error.field, problem=str(error))


@dataclass(kw_only=True)
class BatchReader:
    """Iterates over the images and bad rows of a batch file, in order; reads the file each time."""

    reading: Reading
    options: IntakeOptions = field(default_factory=IntakeOptions)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    images: RowImages | None = None
    """Finds the images that rows name; None for rows that may name none."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about how the file was read. Complete once it has been."""

    def __iter__(self) -> Iterator[Row | BadRow]:
        rows = _Rows(self)
        with open_table(self.reading) as table:
            try:
                if table.columns is not None:
                    rows.columns.check(table.columns, has_prompt="prompt" in self.defaults)
            except BadInput as exc:
                if exc.field != "batch":
                    raise
                raise BadInput("batch", str(self.reading.path), exc.fix) from exc
            for line, values in table.rows:
                yield from rows.read(line, values)
            notes = rows.columns.ignored_note(), rows.dates_note, rows.capitals_note()
            self.notes[:] = [*table.notes, *filter(None, notes)]


def file_reader(path: Path, **more: Any) -> BatchReader:
    """A reader of a file without anything that the user says about it."""
    return BatchReader(reading=Reading(path=path), **more)


@dataclass(slots=True)
class _Sorted:
    """One row: fields of the spec, columns of the template, and the rest."""

    given: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)
    custom_id: Any = None
    require_tag: tuple[str, ...] | None = None
    problem: BadInput | None = None


class _Rows:
    """One reading of a file."""

    def __init__(self, reader: BatchReader) -> None:
        self._options, self._images, self._path = reader.options, reader.images, reader.reading.path
        self._defaults = expand_size(reader.defaults)
        self.columns = Columns(reader.options)
        self._expansion = Expansion(reader.options)
        self._seen: dict[str, int] = {}
        self.dates_note = ""
        """What the user should know of dates where there should be words."""

    def capitals_note(self) -> str:
        """What the user should know of two ids that some file systems take for one; empty without any."""
        if len({name.casefold() for name in self._seen}) == len(self._seen):
            return ""
        known: dict[str, str] = {}
        for name in self._seen:
            first = known.setdefault(name.casefold(), name)
            if first != name:
                break
        fix = "Windows and macOS take files of such names for one"
        return f"the ids {first} and {name} differ in capitals only; {fix}"

    def read(self, line: int, values: dict[str, Any] | BadInput) -> list[Row | BadRow]:
        """The images of a row, or the reason why it has none."""
        custom_id: str | None = None
        try:
            if isinstance(values, BadInput):
                raise values
            row = self._sort(values)
            custom_id = _custom_id(row.custom_id, line)
            if row.problem is not None:
                raise row.problem
            if self._options.template is not None:
                row.given["prompt"] = self._prompt(row.texts)
            own = expand_size(row.given)
            images = list(self._expansion.images_of(custom_id, {**self._defaults, **own}, own))
            return self._named(line, images, row.require_tag)
        except BadInput as exc:
            return [BadRow.of(line, custom_id, exc)]

    def _sort(self, values: dict[str, Any]) -> _Sorted:
        """The values of a row by what they are for."""
        row = _Sorted()
        for name, value in values.items():
            if value is None or (isinstance(value, str) and not fold_blanks(value)):
                continue
            use = self.columns.use_of(name)
            try:
                if use.problem:
                    raise BadInput("column", name[:80] or None, use.problem)
                if use.used:
                    check_no_error(name, value)
                if use.custom_id:
                    row.custom_id = value
                if use.require_tag:
                    row.require_tag = parse_tags(REQUIRE_TAG, value if isinstance(value, list) else [value])
                for column in use.template:
                    row.texts[column] = value
                if type(value) is DateText and (use.template or use.custom_id):
                    self._note_date(name, value)
                if use.field is not None:
                    if use.field.name in row.given:
                        fix = f"is a second value of {use.field.name}; use one of them"
                        raise BadInput("column", name[:80], fix)
                    row.given[use.field.name] = self._value(use.field, value)
            except BadInput as exc:
                # Told with the custom id of the row, which may come later.
                row.problem = row.problem or exc
        return row

    def _note_date(self, column: str, value: str) -> None:
        fix = "format it as text in the workbook if that is not meant"
        self.dates_note = self.dates_note or f"the column {column[:40]} has dates, as {value}; {fix}"

    def _value(self, of: Any, value: Any) -> Any:
        if of.name == "seed" and is_random(value):
            return value
        found = parse_cell(of, value)
        names_files = self._images is not None and self._images.names_files
        is_word = isinstance(found, str) and not names_file(of.name, found)
        if of.name in IMAGE_FIELDS and not is_word:
            if isinstance(found, str) and self._images is not None:
                return self._images.local(of.name, found.strip())
            if not names_files:
                raise BadInput(of.name, found, "is a file of another machine; use chorale submit, or a URL")
        if of.shown.local and (of.many or of.name in {*FILE_FIELDS} - {*IMAGE_FIELDS}):
            if not names_files:
                if self._images is None:
                    raise BadInput(of.name, found, "is a file of another machine; use chorale submit")
                return self._images.replaced(of.name, found)
            return beside(self._path, {of.name: found})[of.name]
        return found

    def _prompt(self, texts: dict[str, Any]) -> str:
        template = self._options.template
        assert template is not None
        lacking = template.columns - texts.keys()
        if lacking:
            raise BadInput("template", template.text, f"needs {min(lacking)}; this row has no value for it")
        return template.fill(lambda column: cell_text(column, texts[column]))

    def _named(
        self, line: int, images: list[tuple[str, Spec]], require_tag: tuple[str, ...] | None
    ) -> list[Row | BadRow]:
        for custom_id, _ in images:
            if custom_id in self._seen:
                before = self._seen[custom_id]
                raise BadInput(CUSTOM_ID, custom_id, f"is already used in line {before}; use another")
        for custom_id, _ in images:
            self._seen[custom_id] = line
        return [
            Row(line=line, custom_id=custom_id, spec=spec, require_tag=require_tag)
            for custom_id, spec in images
        ]


def _custom_id(value: Any, line: int) -> str:
    if value is None:
        return f"row-{line}"
    # One name in two forms of Unicode would be two names that nobody can tell apart.
    text = unicodedata.normalize("NFC", cell_text(CUSTOM_ID, value).strip())
    check_rounded_id(CUSTOM_ID, text)
    return text
