"""Reads and checks the JSON files of a model folder. No torch."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any, overload

from render.errors import ModelNotUsable
from render.models.single_file import layout_of
from render.safetensors_file import file_problem, is_lfs_pointer

JOINED = "single_file.json"
"""In a folder of links to a single file and the folder that completes it (`render.models.base_folder`): where
these two are, and the parts that come from the file."""


def read_config(path: Path, part: str) -> dict[str, Any]:
    """A part's configuration file; raises `ModelNotUsable` when it cannot be read."""
    return read_json(path, f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json")


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder; raises `ModelNotUsable` when it is missing or not an object."""
    if path.is_file():
        return dict(layout_of(path)[name])
    try:
        document = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise unusable(path, f"lacks {name}; use a folder in diffusers' format") from exc
    except PermissionError as exc:
        raise unusable(path, f"has the file {name} {file_problem(path / name)}") from exc
    except (OSError, ValueError, RecursionError) as exc:
        if is_lfs_pointer(path / name):
            raise unusable(path, f"has the file {name} {file_problem(path / name)}") from exc
        raise unusable(path, f"has an unreadable {name}; download the model again") from exc
    if not isinstance(document, dict):
        raise unusable(path, f"has a {name} that is not a JSON object; download the model again")
    return document


def whole_number(path: Path, config: dict[str, Any], part: str, key: str, default: int) -> int:
    """A whole number above 0 from the configuration of a part; raises `ModelNotUsable` for anything else."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise unusable(path, f"has {key} {value!r} in {part}/config.json; it must be a whole number")
    return value


@overload
def number(path: Path, index: dict[str, Any], key: str, minimum: float, default: float) -> float: ...
@overload
def number(path: Path, index: dict[str, Any], key: str, minimum: float, default: None) -> float | None: ...
def number(
    path: Path, index: dict[str, Any], key: str, minimum: float, default: float | None
) -> float | None:
    """A number of at least `minimum` from `model_index.json`; raises `ModelNotUsable` for anything else."""
    value = index.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not minimum <= value < math.inf:
        raise unusable(path, f"has {key} {value!r} in model_index.json; it must be at least {minimum:g}")
    return float(value)


def unusable(path: Path, problem: str) -> ModelNotUsable:
    """The error for a folder; `problem` says what is wrong and what to do."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        joined = json.loads((path / JOINED).read_text(encoding="utf-8"))
        return ModelNotUsable("model", f"{joined['file']} with {joined['base']}", problem)
    return ModelNotUsable("model", str(path), problem)
