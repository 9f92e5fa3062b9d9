"""The models that the package brings, by name. No torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from render.errors import ModelNotUsable

BUILTIN = "builtin"
_FOLDERS = {BUILTIN: "weights", "builtin-dit": "dit_weights"}
"""In `render/builtin`."""


def packaged_models() -> tuple[str, ...]:
    """The names of those whose weights this installation has."""
    return tuple(name for name in _FOLDERS if _folder(name).is_dir())


def packaged_folder(name: str) -> Path | None:
    """The folder of a packaged model; None for another name, and for one that this installation lacks.

    Raises `ModelNotUsable` for `builtin`, which every installation should have.
    """
    if name not in _FOLDERS:
        return None
    if (folder := _folder(name)).is_dir():
        return folder
    if name == BUILTIN:
        raise ModelNotUsable("model", name, "has no weights in this installation; install it again")
    return None


def _folder(name: str) -> Path:
    return Path(str(resources.files("render") / "builtin" / _FOLDERS[name]))
