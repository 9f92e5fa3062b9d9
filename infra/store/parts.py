"""Files that are being written, under names of their own until they are whole; what crashes leave of them."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PART = ".part-"
"""How their names begin. No listing of a store has them."""
ABANDONED_S = 3600.0
"""Whatever is written under such a name is whole within seconds. One that has not changed for so long has
lost its writer, also where the clock of a file server differs from this machine's by some minutes."""
_NAME = re.compile(rf"{re.escape(PART)}[0-9a-f]{{32}}")


@dataclass(frozen=True)
class Abandoned:
    """A file that nobody is going to finish."""

    path: Path
    bytes: int
    modified: float
    """Seconds since the epoch."""


def part_of(path: Path) -> Path:
    """A fresh name beside a file, to write under."""
    return path.with_name(f"{PART}{uuid.uuid4().hex}")


def abandoned_parts(folder: Path, now: float | None = None) -> Iterator[Abandoned]:
    """All that lie in a folder or below it. Raises nothing: what cannot be read is passed over."""
    before = (time.time() if now is None else now) - ABANDONED_S
    for directory, _, names in os.walk(folder):
        for name in names:
            if _NAME.fullmatch(name):
                path = Path(directory, name)
                with contextlib.suppress(OSError):
                    found = path.lstat()
                    if found.st_mtime < before:
                        yield Abandoned(path, found.st_size, found.st_mtime)


def remove_abandoned_parts(folder: Path) -> None:
    """Delete them. Raises nothing."""
    for each in abandoned_parts(folder):
        with contextlib.suppress(OSError):
            each.path.unlink()
