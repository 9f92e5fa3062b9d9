"""A measured figure beside what was wanted."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"


class Row(NamedTuple):
    """One figure; `wanted` is empty where nothing is promised."""

    name: str
    value: float
    wanted: str

    def holds(self) -> str:
        for sign, good in (("<=", lambda a, b: a <= b), (">=", lambda a, b: a >= b)):
            if self.wanted.startswith(sign):
                return "yes" if good(self.value, float(self.wanted[2:])) else "no"
        return ""


def hardware() -> str:
    """The processor's name and cores, as the machine tells them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}, {os.cpu_count()} cores, {versions}"


def as_markdown(title: str, command: str, rows: Sequence[Row] | Sequence[str]) -> str:
    """A section; `rows` are figures, or the lines of a table of another kind."""
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"## {title}",
        "",
        f"{today}, {hardware()}. `{command}`",
        "",
    ]
    if rows and isinstance(rows[0], Row):
        lines += ["| figure | measured | wanted | holds |", "|---|---|---|---|"]
    for row in rows:
        is_figure = isinstance(row, Row)
        lines.append(f"| {row.name} | {row.value:.3f} | {row.wanted} | {row.holds()} |" if is_figure else row)
    return "\n".join(lines) + "\n"


def count_table(rows: Sequence[tuple[str, object]]) -> list[str]:
    """The lines of a table of counts, which promise nothing by themselves."""
    return ["| what | count |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def write_section(title: str, text: str) -> None:
    """Replace the section of this title in RESULTS.md where it stands, or add it."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Measured\n"
    head, *sections = old.split("\n## ")
    # A dictionary keeps the place of what it is given anew.
    by_title = {section.split("\n", 1)[0]: section for section in sections}
    by_title[title] = text.removeprefix("## ")
    body = "".join(f"\n## {section.rstrip()}\n" for section in by_title.values())
    RESULTS.write_text(head.rstrip() + "\n" + body, encoding="utf-8")
