"""Names that users give: checked alike for every database, before anything is written."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, String

from render.errors import BadInput


def longest(column: Column[Any]) -> int:
    """Characters that a column holds; PostgreSQL refuses more, SQLite does not."""
    assert isinstance(column.type, String) and column.type.length is not None
    return column.type.length


def is_storable(text: str) -> bool:
    """Whether every database takes a text: it has no null byte and no half of a surrogate pair."""
    return not any(sign == "\0" or 0xD800 <= ord(sign) <= 0xDFFF for sign in text)


def check_name(field: str, value: str, column: Column[Any]) -> None:
    """Raise `BadInput` for a name that SQLite may take and PostgreSQL may not, or that no terminal shows."""
    if not value.strip():
        raise BadInput(field, value, "is empty; give a name")
    if len(value) > longest(column):
        raise BadInput(field, value[:60], f"has {len(value)} characters; use at most {longest(column)}")
    if not value.isprintable():
        raise BadInput(field, value, "has characters that do not print; use letters and digits")


def unknown_node(name: str) -> BadInput:
    """The error of a name that no node has."""
    return BadInput("node", name, "is unknown; chorale nodes shows the known ones")
