"""Names of files in the values of a spec: found, and replaced where the files came from another machine.

A part of a value is a name and what is said of it, as `canny=edges.png:0.8` or `product.safetensors:0.6`; the
name is the longest beginning for which there is a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from render.errors import BadInput
from render.spec import FILE_FIELDS, PARTS_OF_FILES, names_file

Find = Callable[[str, str], str | None]
"""The replacement for a name in a field; None for a name that stands for no file."""
MOST_FILES = 5_000
"""Of one submission from another machine: their names and digests are one field of a form, of 1 MiB."""


def replace_names(field: str, value: Any, find: Find, problem: str) -> Any:
    """A value of a field with the names of its files replaced; a value that names none stays as it is.

    Raises `BadInput` with the problem for a name that `find` does not know.
    """
    if value is None or field not in (*FILE_FIELDS, *PARTS_OF_FILES):
        return value
    if field in FILE_FIELDS:
        if not isinstance(value, str):
            raise BadInput(field, str(value)[:120], problem)
        return _found(field, value.strip(), find, problem) if names_file(field, value) else value
    if not isinstance(value, list | tuple):
        raise BadInput(field, str(value)[:120], problem)
    return [_replaced(field, part, find, problem) for part in value]


def _found(field: str, name: str, find: Find, problem: str) -> str:
    found = find(field, name)
    if found is None:
        raise BadInput(field, name[:200], problem)
    return found


def _replaced(field: str, part: Any, find: Find, problem: str) -> Any:
    if isinstance(part, dict) and isinstance(part.get("path"), str) and "digest" not in part:
        return part | {"path": _found(field, part["path"], find, problem)}
    if not isinstance(part, str):
        raise BadInput(field, str(part)[:120], problem)
    head, sign, rest = part.partition("=") if field == "control" else ("", "", part)
    for name in _beginnings(rest):
        if (found := find(field, name)) is not None:
            return f"{head}{sign}{found}{rest[len(name) :]}"
    raise BadInput(field, part[:200], problem)


def _beginnings(text: str) -> Iterator[str]:
    """The text, and what is before its colons, the longest first."""
    while text:
        yield text
        text, _, _ = text.rpartition(":")
