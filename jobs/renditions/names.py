"""Names of rendition files, from a template with `{custom_id}`, `{n}` and the like."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from string import Formatter

from render.errors import BadInput

FIELDS = ("custom_id", "base_id", "n", "row", "job", "seed", "channel")
"""See `jobs.renditions.batch.BatchImage`."""
_UNSAFE = re.compile(r"[^\w.+() -]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE | re.ASCII)
"""Devices of Windows, with any ending."""
_LONGEST = 180
"""Bytes of one value, so that a name stays below the 255 of file systems."""


def file_name(template: str, values: Mapping[str, str | int]) -> str:
    """A template with its fields filled in. Raises `BadInput` for a field that does not exist."""
    filled = []
    for text, name, spec, conversion in _parsed(template):
        filled.append(text)
        if name is None:
            continue
        if name not in values or conversion:
            raise BadInput("target", template, f"has {{{name}}}; use {', '.join(f'{{{f}}}' for f in FIELDS)}")
        try:
            filled.append(safe(format(values[name], spec or "")))
        except ValueError as exc:
            raise BadInput("target", template, f"has {{{name}:{spec}}} ({exc}); use e.g. {{n:02}}") from exc
    return "".join(filled)


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(template))
    except ValueError as exc:
        raise BadInput("target", template, f"has unmatched braces ({exc}); write e.g. {{custom_id}}") from exc


def has_fields(template: str) -> bool:
    """Whether a template names anything that differs between images."""
    return any(name is not None for _, name, _, _ in _parsed(template))


def safe(text: str) -> str:
    """A value as a part of a file's name: no separators, no control characters, no leading dot, nothing that
    Windows refuses, in the composed form that all systems take alike."""
    cleaned = _UNSAFE.sub("_", unicodedata.normalize("NFC", text)).strip().rstrip(". ")
    cleaned = re.sub(r"^\.+", "_", cleaned) or "_"
    if _RESERVED.fullmatch(cleaned):
        cleaned += "_"
    return cleaned.encode()[:_LONGEST].decode(errors="ignore")


def check_unique(targets: Mapping[Path, str], target: Path, custom_id: str) -> None:
    """Raise `BadInput` if another image has the same file already (upper and lower case alike)."""
    if target in targets:
        problem = (
            f"gives {targets[target]!r} and {custom_id!r} one file, {target.name}; add {{custom_id}}, {{n}}, "
            "{row} or {job}"
        )
        raise BadInput("target", str(target.parent), problem)
