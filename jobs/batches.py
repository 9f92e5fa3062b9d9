"""Batches: a file of rows becomes many specs. Rows are streamed, and bad rows are reported by line.

The columns of a row are the fields of a spec (`prompt`, `seed`, `steps`, ...), `size` as WIDTHxHEIGHT, and
`custom_id`, its owner's name for it. A template builds the prompt from the other columns. An empty cell
stands for the default.
"""

from __future__ import annotations

import csv
import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from jobs.db.submission import BatchItem
from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.plan.stages import check_sampler
from render.spec import Spec, beside, expand_size

ENDINGS = (".csv", ".jsonl", ".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a batch, checked."""

    line: int
    custom_id: str
    spec: Spec


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be rendered, and the reason in one sentence."""

    line: int
    custom_id: str | None
    problem: str


@dataclass(kw_only=True)
class BatchReader:
    """Iterates over the rows and bad rows of a batch file, in order; reads the file each time."""

    path: Path
    template: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    names_files: bool = True
    """Whether rows may name files of this machine; not those of an uploaded batch."""

    def __iter__(self) -> Iterator[Row | BadRow]:
        columns = _template_columns(self.template)
        seen: dict[str, int] = {}
        for line, values in _raw_rows(self.path):
            yield self._checked(line, values, columns, seen)

    def _checked(self, line: int, values: Any, columns: frozenset[str], seen: dict[str, int]) -> Row | BadRow:
        custom_id: str | None = None
        try:
            if isinstance(values, BadInput):
                raise values
            custom_id = _custom_id(values.pop("custom_id", None), line)
            if custom_id in seen:
                raise BadInput(
                    "custom_id", custom_id, f"is already used in line {seen[custom_id]}; use another"
                )
            spec = Spec.from_mapping(self._spec_values(values, columns))
        except BadInput as exc:
            return BadRow(line=line, custom_id=custom_id, problem=str(exc))
        seen[custom_id] = line
        return Row(line=line, custom_id=custom_id, spec=spec)

    def _spec_values(self, values: dict[str, Any], columns: frozenset[str]) -> dict[str, Any]:
        own = {field.name for field in Spec.inputs()}
        unused = (columns | self.ignored) - own
        given = {
            name: value for name, value in values.items() if value not in (None, "") and name not in unused
        }
        row = self._prompt(values, columns) | beside(self.path, expand_size(Spec.parse(given)))
        if "init" in row and not self.names_files:
            raise BadInput("init", row["init"], "is a file of another machine; use chorale submit")
        return expand_size(self.defaults) | row

    def _prompt(self, values: dict[str, Any], columns: frozenset[str]) -> dict[str, str]:
        """The prompt that the template makes of a row, if there is a template."""
        if self.template is None:
            return {}
        lacking = sorted(column for column in columns if values.get(column) in (None, ""))
        if lacking:
            raise BadInput("template", self.template, f"needs {lacking[0]}; this row has no value for it")
        try:
            return {"prompt": self.template.format_map(values)}
        except (ValueError, RecursionError) as exc:
            # A number of thousands of digits, or lists nested too deeply.
            raise BadInput("template", self.template, "cannot take the values of this row") from exc


def _custom_id(value: Any, line: int) -> str:
    if value in (None, ""):
        return f"row-{line}"
    try:
        if isinstance(value, str | int | float):
            return str(value)
    except ValueError:
        # Python does not write numbers of thousands of digits.
        pass
    raise BadInput("custom_id", value, "is not text or a number; give each row a name of its own")


def check_batch(reader: BatchReader) -> tuple[int, list[BadRow]]:
    """Read the whole file once before anything is queued, and check its models: (good rows, bad rows)."""
    # Once per model, not per row: it reads the model's folder.
    problem_of = cache(models_problem)
    good, bad = 0, []
    for row in reader:
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        problem = problem_of(*_model_fields(row.spec))
        if problem is None:
            good += 1
        else:
            bad.append(BadRow(line=row.line, custom_id=row.custom_id, problem=problem))
    return good, bad


def batch_items(reader: BatchReader) -> Iterator[BatchItem]:
    """The good rows, ready for `jobs.db.submission.submit`."""
    problem_of = cache(models_problem)
    for row in reader:
        if isinstance(row, Row) and problem_of(*_model_fields(row.spec)) is None:
            yield BatchItem(row=row.line, custom_id=row.custom_id, spec=row.spec)


def _model_fields(spec: Spec) -> tuple[str, str | None, str, int]:
    return spec.model, spec.refiner, spec.sampler, spec.steps


def models_problem(model: str, refiner: str | None, sampler: str, steps: int) -> str | None:
    """Why a model, its refiner or the sampler with them cannot be used, in one sentence; None if all can."""
    try:
        check_sampler(model, sampler, steps, model_info(find_model_paths(model, refiner)))
    except BadInput as exc:
        return str(exc)
    return None


def _template_columns(template: str | None) -> frozenset[str]:
    if template is None:
        return frozenset()
    try:
        fields_of = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as exc:
        raise BadInput("template", template, f"is not valid ({exc}); write {{column}} for a column") from exc
    names = {str(name) for _, name, _, _ in fields_of}
    if any(form or conversion for _, _, form, conversion in fields_of):
        # {color:>9999999999} would be a prompt of ten gigabytes.
        raise BadInput("template", template, "formats a column; write only its name in the braces")
    if not names or not all(name.isidentifier() for name in names):
        raise BadInput("template", template, "names no columns; write e.g. a photo of a {color} {product}")
    return frozenset(names)


def _raw_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadInput]]:
    """(line, columns) of each row; the error in place of a row that cannot be read."""
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
    # utf-8-sig: spreadsheets start their files with a byte order mark.
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        if not rows.fieldnames:
            raise BadInput("batch", str(path), "is empty; its first line must name the columns")
        _check_header(path, [name.strip() for name in rows.fieldnames])
        try:
            for values in rows:
                if None in values or None in values.values():
                    yield rows.line_num, _ragged(values, len(rows.fieldnames))
                else:
                    yield rows.line_num, {name.strip(): value.strip() for name, value in values.items()}
        except csv.Error as exc:
            fix = f"is not valid CSV in line {rows.line_num} ({exc}); check its quotes"
            raise BadInput("batch", str(path), fix) from exc


def _check_header(path: Path, names: list[str]) -> None:
    for separator, called in ((";", '";"'), ("\t", "a tab")):
        if len(names) == 1 and separator in names[0]:
            fix = f"has one column, {names[0][:60]!r}. Is {called} the separator? Save it with commas"
            raise BadInput("batch", str(path), fix)
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise BadInput("batch", str(path), f"has two columns named {twice}; rename one")


def _ragged(values: dict[Any, Any], columns: int) -> BadInput:
    count = sum(value is not None for name, value in values.items() if name is not None)
    count += len(values.get(None, ()))
    fix = f"do not match the header, which has {columns}; quote values that contain commas"
    return BadInput("columns", count, fix)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadInput]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as exc:
                yield number, BadInput("row", None, f"is not valid JSON ({exc})")
                continue
            yield number, values if isinstance(values, dict) else _not_an_object()


def _yaml_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadInput]]:
    """`rows:`, a list, and `defaults:` for all rows."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as exc:
        raise BadInput("batch", str(path), f"is not valid YAML ({str(exc).splitlines()[0]})") from exc
    except (ValueError, RecursionError) as exc:
        raise BadInput("batch", str(path), "contains a value that cannot be read; fix the file") from exc
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
        raise BadInput("batch", str(path), "has no list of rows; write rows: and one item per image")
    for key in document:
        if key not in ("rows", "defaults"):
            raise BadInput("key", key, "is unknown in a batch; use defaults and rows")
    defaults = document.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise BadInput("defaults", defaults, "is not names and values; write e.g. {steps: 20}")
    for number, values in enumerate(document["rows"], 1):
        yield number, defaults | values if isinstance(values, dict) else _not_an_object()


def _not_an_object() -> BadInput:
    return BadInput("row", None, "is not names and values; write e.g. prompt: a red vase")
