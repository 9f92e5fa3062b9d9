"""JSONL files: one JSON object for each line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, TextIO

from jobs.intake.encoding import find_encoding
from jobs.intake.raw_rows import RawRow, Reading, Table, not_names_and_values, refuse_row
from render.errors import BadInput

_NO_LIST = "is a JSON list; write one object for each line, without brackets and commas around them"
_NO_COMMA = "ends with a comma; write one object for each line, without commas between them"
_COMMA_INSIDE = re.compile(r",\s*[}\]]")


def open_json_lines(reading: Reading, files: ExitStack) -> Table:
    """Raises `BadInput` and `OSError`."""
    encoding = find_encoding(reading.path, reading.encoding)
    file = files.enter_context(reading.path.open(encoding=encoding.codec))
    return Table(rows=_rows(file), notes=[encoding.note] if encoding.note else [])


def _rows(file: TextIO) -> Iterator[RawRow]:
    for number, text in enumerate(file, 1):
        if text.strip():
            yield number, _values(text)


def _values(text: str) -> dict[str, Any] | BadInput:
    bare = text.strip()
    if bare in ("[", "]", "],"):
        return refuse_row(_NO_LIST)
    if bare in ("{", "}", "},"):
        return refuse_row("is a part of an object of several lines; write each object in one line")
    if bare.endswith(("},", "],")):
        return refuse_row(_NO_COMMA)
    try:
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except BadInput as exc:
        return exc
    except (ValueError, RecursionError) as exc:
        if _COMMA_INSIDE.search(text) is not None and str(exc).startswith(("Expecting", "Illegal")):
            return refuse_row("has a comma before a closing bracket, which is not JSON; remove it")
        return refuse_row(f"is not valid JSON ({str(exc)[:100]})")
    if isinstance(values, list):
        return refuse_row(_NO_LIST)
    return values if isinstance(values, dict) else not_names_and_values()


def _no_number(name: str) -> Any:
    """Python's json writes NaN where a table has no value."""
    raise BadInput("row", None, f"has {name}, which is not JSON; write null where there is no value")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput("row", None, f"names {twice[:80]!r} twice; rename one")
    return values
