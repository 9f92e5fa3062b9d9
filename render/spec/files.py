"""Spec files, and the values of several sources put together."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from render.errors import BadInput

_SIZE_FORM = "is not WIDTHxHEIGHT in pixels; use e.g. 1024x1024"


def read_spec_file(path: Path) -> dict[str, Any]:
    """Names and values from a .json, .yaml, .yml or .toml file; raises `BadInput` when it cannot be read."""
    readers: dict[str, Callable[[str], Any]] = {
        ".json": json.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".toml": tomllib.loads,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BadInput("spec", str(path), f"has an unknown ending; use one of {', '.join(readers)}")
    try:
        values = reader(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise BadInput("spec", str(path), f"cannot be read ({exc.strerror}); check the path") from exc
    except (ValueError, yaml.YAMLError) as exc:
        reason = str(exc).splitlines()[0]
        raise BadInput("spec", str(path), f"is not valid {path.suffix[1:]} ({reason}); fix the file") from exc
    except RecursionError as exc:
        raise BadInput("spec", str(path), "is nested too deeply; fix the file") from exc
    if not isinstance(values, dict):
        raise BadInput("spec", str(path), "contains no names and values; write e.g. prompt: a red vase")
    # Editors find the schema of a JSON file by this key.
    values.pop("$schema", None)
    return beside(path, values)


def beside(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file, with its relative paths resolved against the folder it is in."""
    found = dict(values)
    if isinstance(found.get("init"), str):
        found["init"] = str(file.parent / found["init"])
    if isinstance(found.get("lora"), list):
        found["lora"] = [str(file.parent / each) if isinstance(each, str) else each for each in found["lora"]]
    return found


def parse_size(text: str) -> tuple[int, int]:
    """`1536x1024` -> (width, height) in pixels; raises `BadInput` when it is not of that form."""
    width, cross, height = text.lower().replace(" ", "").replace("×", "x").partition("x")
    if not (cross and _is_whole(width) and _is_whole(height)):
        raise BadInput("size", text, _SIZE_FORM)
    return int(width), int(height)


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    # Longer ones are no size, and int() refuses thousands of digits.
    return digits.isascii() and digits.isdigit() and len(digits) < 1000


def expand_size(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `size` written as `width` and `height`; raises `BadInput` for one that is none.

    Done for each source of values on its own, so that a source's width wins over the size of the one below.
    """
    expanded = dict(values)
    if "size" not in expanded:
        return expanded
    size = expanded.pop("size")
    if not isinstance(size, str):
        raise BadInput("size", size, _SIZE_FORM)
    width, height = parse_size(size)
    for name, side in (("width", width), ("height", height)):
        if expanded.setdefault(name, side) != side:
            raise BadInput("size", size, f"contradicts {name} {expanded[name]}; give one of them")
    return expanded
