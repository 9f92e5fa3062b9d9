"""Batches: a file of rows becomes many specs. Rows are streamed; every bad one is named by its line.

A row's columns are the spec's own names (`prompt`, `seed`, `steps`, ...), `size` as WIDTHxHEIGHT, and
`custom_id`, by which its owner knows it. A template writes the prompt from the other columns.
"""

from __future__ import annotations

import csv
import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from jobs.db.submission import BatchItem
from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.spec import Spec, beside, parse_size

ENDINGS = (".csv", ".jsonl", ".yaml", ".yml")
_KINDS: dict[str, type] = {"int": int, "float": float, "str": str}
_TYPES = {f.name: _KINDS.get(str(f.type), str) for f in fields(Spec)}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a batch, checked."""

    line: int
    custom_id: str
    spec: Spec


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be rendered, and why, in one sentence."""

    line: int
    custom_id: str | None
    problem: str


@dataclass(kw_only=True)
class BatchReader:
    """Reads a batch file as rows and bad rows, in order. Iterating again reads the file again."""

    path: Path
    template: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    names_files: bool = True
    """Rows may name files of this machine; not where they come from elsewhere."""

    def __iter__(self) -> Iterator[Row | BadRow]:
        words = _template_words(self.template)
        seen: dict[str, int] = {}
        for line, values in _raw_rows(self.path):
            yield self._checked(line, values, words, seen)

    def _checked(self, line: int, values: Any, words: frozenset[str], seen: dict[str, int]) -> Row | BadRow:
        custom_id: str | None = None
        try:
            if isinstance(values, BadInput):
                raise values
            custom_id = str(values.pop("custom_id", None) or f"row-{line}")
            if custom_id in seen:
                raise BadInput("custom_id", custom_id, f"is already used in line {seen[custom_id]}")
            spec = Spec.from_mapping(self._spec_values(values, words))
        except BadInput as exc:
            return BadRow(line=line, custom_id=custom_id, problem=str(exc))
        seen[custom_id] = line
        return Row(line=line, custom_id=custom_id, spec=spec)

    def _spec_values(self, values: dict[str, Any], words: frozenset[str]) -> dict[str, Any]:
        wanted = dict(self.defaults)
        if self.template is not None:
            lacking = sorted(word for word in words if values.get(word) in (None, ""))
            if lacking:
                raise BadInput("template", self.template, f"needs {lacking[0]}, which this row does not have")
            wanted["prompt"] = self.template.format_map(values)
        for name, value in values.items():
            if value in (None, "") or (
                name not in _TYPES and name != "size" and name in words | self.ignored
            ):
                continue
            wanted[name] = _parsed(name, value)
        if "size" in wanted:
            wanted["width"], wanted["height"] = parse_size(str(wanted.pop("size")))
        if "init" in wanted and not self.names_files:
            raise BadInput("init", wanted["init"], "is a file; use chorale submit")
        return beside(self.path, wanted)


def check_batch(reader: BatchReader) -> tuple[int, list[BadRow]]:
    """Read the whole file once before anything is queued; models are looked at too: good rows, bad ones."""
    # Once for each model, not for each row: it reads the model's folder.
    problem_of = cache(models_problem)
    good, bad = 0, []
    for row in reader:
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        problem = problem_of(row.spec.model, row.spec.refiner)
        if problem is None:
            good += 1
        else:
            bad.append(BadRow(line=row.line, custom_id=row.custom_id, problem=problem))
    return good, bad


def batch_items(reader: BatchReader) -> Iterator[BatchItem]:
    """The good rows, to be submitted."""
    problem_of = cache(models_problem)
    for row in reader:
        if isinstance(row, Row) and problem_of(row.spec.model, row.spec.refiner) is None:
            yield BatchItem(row=row.line, custom_id=row.custom_id, spec=row.spec)


def models_problem(model: str, refiner: str | None) -> str | None:
    """Why a model, or its refiner, cannot be used, in one sentence; None when both can."""
    try:
        model_info(find_model_paths(model, refiner))
    except BadInput as exc:
        return str(exc)
    return None


def _template_words(template: str | None) -> frozenset[str]:
    if template is None:
        return frozenset()
    try:
        fields_of = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as exc:
        raise BadInput("template", template, f"is not valid ({exc}); write {{column}} for a column") from exc
    names = {str(name) for _, name, _, _ in fields_of}
    if any(form or conversion for _, _, form, conversion in fields_of):
        # {color:>9999999999} would be a prompt of ten gigabytes.
        raise BadInput("template", template, "formats a column; write nothing but its name in the braces")
    if not names or not all(name.isidentifier() for name in names):
        raise BadInput("template", template, "names no columns; write e.g. a photo of a {color} {product}")
    return frozenset(names)


def _parsed(name: str, value: Any) -> Any:
    """A cell of a CSV is text; a value of JSON or YAML is what it is."""
    kind = _TYPES.get(name, str)
    if not isinstance(value, str) or kind is str:
        return value
    try:
        return kind(value)
    except ValueError as exc:
        raise BadInput(name, value, f"is not {'a whole number' if kind is int else 'a number'}") from exc


def _raw_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadInput]]:
    """(line, columns) of each row; a row that cannot be read comes as its error."""
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".yaml": _yaml_rows, ".yml": _yaml_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BadInput("batch", str(path), f"has an unknown ending; use one of {', '.join(ENDINGS)}")
    try:
        yield from reader(path)
    except OSError as exc:
        raise BadInput("batch", str(path), f"cannot be read ({exc.strerror}); check the path") from exc
    except UnicodeDecodeError as exc:
        raise BadInput("batch", str(path), "is not UTF-8 text; save it as UTF-8") from exc


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadInput]]:
    # utf-8-sig: spreadsheets begin their files with a byte order mark.
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        if not rows.fieldnames:
            raise BadInput("batch", str(path), "is empty; its first line names the columns")
        try:
            for values in rows:
                if None in values or None in values.values():
                    problem = f"has another number of columns than the first line ({len(rows.fieldnames)})"
                    yield rows.line_num, BadInput("row", rows.line_num, problem)
                else:
                    yield rows.line_num, {name.strip(): value.strip() for name, value in values.items()}
        except csv.Error as exc:
            raise BadInput("batch", str(path), f"is not valid CSV in line {rows.line_num} ({exc})") from exc


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadInput]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except ValueError as exc:
                yield number, BadInput("row", number, f"is not JSON ({exc})")
                continue
            fits = isinstance(values, dict)
            yield number, values if fits else BadInput("row", number, "is not an object of names and values")


def _yaml_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadInput]]:
    """`rows:`, a list, and `defaults:` for all of them."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as exc:
        raise BadInput("batch", str(path), f"is not valid YAML ({str(exc).splitlines()[0]})") from exc
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
        raise BadInput("batch", str(path), "has no list of rows; write rows: and one item per image")
    unknown = sorted(set(document) - {"rows", "defaults"})
    if unknown:
        raise BadInput("key", unknown[0], "is unknown in a batch; use defaults and rows")
    defaults = document.get("defaults") or {}
    for number, values in enumerate(document["rows"], 1):
        fits = isinstance(values, dict) and isinstance(defaults, dict)
        yield number, {**defaults, **values} if fits else BadInput("row", number, "is not names and values")
