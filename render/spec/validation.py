"""Parts of a spec that are written as names and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from render.errors import BadInput


def checked_mapping(field: str, part: type[Any], value: Any, fix: str) -> Mapping[str, Any]:
    """`value` as names and values of a dataclass; raises `BadInput` of `field` for anything else."""
    if not isinstance(value, Mapping):
        raise BadInput(field, value, fix)
    names = [each.name for each in fields(part)]
    for name in value:
        if name not in names:
            raise BadInput(field, name, f"is unknown; use {', '.join(names)}")
    return value
