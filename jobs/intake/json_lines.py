"""JSONL files: one JSON object for each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jobs.intake.encoding import find_encoding
from jobs.intake.raw_rows import RawRow, Reading, Table, not_names_and_values, refuse_row
from render.errors import BadInput


def open_json_lines(reading: Reading) -> Table:
    """Raises `BadInput` and `OSError`."""
    encoding = find_encoding(reading.path, reading.encoding)
    return Table(rows=_rows(reading, encoding.codec), notes=[encoding.note] if encoding.note else [])


def _rows(reading: Reading, codec: str) -> Iterator[RawRow]:
    with reading.path.open(encoding=codec) as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield number, _values(text)


def _values(text: str) -> dict[str, Any] | BadInput:
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except BadInput as exc:
        return exc
    except (ValueError, RecursionError) as exc:
        return refuse_row(f"is not valid JSON ({str(exc)[:100]})")
    return values if isinstance(values, dict) else not_names_and_values()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput("row", None, f"names {twice[:80]!r} twice; rename one")
    return values
