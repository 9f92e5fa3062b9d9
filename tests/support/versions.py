"""A second version of the program, whose images have other bits: a copy of the tree, two lines changed."""

from __future__ import annotations

import os
from pathlib import Path

from render.numerics import NUMERICS

TOP = Path(__file__).parent.parent.parent
CHANGES = {
    "render/numerics.py": (f"\nNUMERICS = {NUMERICS}\n", f"\nNUMERICS = {NUMERICS + 1}\n"),
    "render/sampling/noise.py": (
        "    key_low, key_high = seed & 0xFFFF_FFFF,",
        "    key_low, key_high = (seed ^ 1) & 0xFFFF_FFFF,",
    ),
}
"""File -> what is replaced by what."""


def other_version(folder: Path) -> tuple[str, ...]:
    """Make it in a new folder; the words before a command that run it there instead of this version."""
    for package in ("infra", "jobs", "render"):
        for path in (TOP / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(TOP)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if str(name) not in CHANGES:
                    os.symlink(path, folder / name)
    for name, (old, new) in CHANGES.items():
        text = (TOP / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has changed; find the line again"
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    return "env", "-C", str(folder), f"PYTHONPATH={folder}"
