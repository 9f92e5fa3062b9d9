"""Reads batch files as `chorale submit` does, without a farm."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from infra.settings import Settings
from jobs.intake.batch_reader import BadRow, BatchReader, Row
from jobs.intake.options import parse_options
from jobs.intake.raw_rows import Reading
from jobs.intake.row_images import RowImages

TEMPLATE = "a {color} {product}"


def read_file(
    path: Path,
    defaults: dict[str, Any] | None = None,
    encoding: str | None = None,
    sheet: str | None = None,
    **options: Any,
) -> tuple[list[Row], list[str], list[str]]:
    """The good rows, the problems of the bad ones with their lines, and the notes."""
    images = RowImages(Settings(), path.parent)
    reader = BatchReader(
        reading=Reading(path=path, encoding=encoding, sheet=sheet),
        options=parse_options(**options),
        defaults={"width": 64, "height": 64} | (defaults or {}),
        images=images,
    )
    with closing(images):
        rows = list(reader)
    good = [row for row in rows if isinstance(row, Row)]
    return good, [f"{row.line}: {row.problem}" for row in rows if isinstance(row, BadRow)], reader.notes


def prompts(rows: list[Row]) -> list[str]:
    return [row.spec.prompt for row in rows]
