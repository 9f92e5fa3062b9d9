"""Files of this machine that a submission names, for a farm that is used over its board: found and sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.client import Farm
from jobs.formatting import plural
from jobs.intake.cells import parse_cell
from jobs.intake.columns import Columns
from jobs.intake.named_files import MOST_FILES, replace_names
from jobs.intake.open_table import open_table
from jobs.intake.options import IntakeOptions
from jobs.intake.raw_rows import Reading, fold_blanks
from render.errors import BadInput
from render.spec import FILE_FIELDS, PARTS_OF_FILES
from render.spec.files import home_path, is_file

_MISSING = "is not a file on this machine; check the path"
_ON_THE_FARM = ("controlnet",)
"""Folders, which lie on the nodes."""


@dataclass
class FilesToSend:
    """The files of one submission, by the names that it has for them."""

    paths: dict[str, Path] = field(default_factory=dict)

    def add_values(self, values: Mapping[str, Any]) -> None:
        """Those that fields of a spec name; raises `BadInput` for a name without a file or with two."""
        for name, value in values.items():
            if name in (*FILE_FIELDS, *PARTS_OF_FILES) and value is not None:
                replace_names(name, value, lambda of, text: self._find(of, text, Path()), _MISSING)

    def add_rows(self, reading: Reading, options: IntakeOptions) -> None:
        """Those that rows of a batch file name, beside it. Rows that cannot be read are the farm's to tell.

        Raises `BadInput` for names without a file or with two, and for a file that is no batch.
        """
        missing: list[BadInput] = []
        for name, value in _cells(reading, options):
            try:
                replace_names(
                    name, value, lambda of, text: self._find(of, text, reading.path.parent), _MISSING
                )
            except BadInput as exc:
                missing.append(exc)
        if missing:
            first, others = missing[0], len(missing) - 1
            more = f" ({plural(others, 'other name')} too)" if others else ""
            raise BadInput(first.field, first.value, f"{first.fix}{more}")

    def send(self, farm: Farm) -> dict[str, str]:
        """Send what the farm does not have yet; returns digests by name. Raises `BadInput` for too many."""
        if len(self.paths) > MOST_FILES:
            fix = f"are too many; use at most {MOST_FILES:,} for each submission"
            raise BadInput("files", len(self.paths), fix)
        digests: dict[Path, str] = {}
        for path in self.paths.values():
            if path not in digests:
                digests[path] = farm.send_file(path)
        return {name: digests[path] for name, path in self.paths.items()}

    def _find(self, of: str, name: str, folder: Path) -> str | None:
        if of in _ON_THE_FARM or (of in FILE_FIELDS and "://" in name):
            return name
        path = home_path(name)
        path = path if path.is_absolute() else folder / path
        if not is_file(path):
            return None
        known = self.paths.setdefault(name, path)
        if known != path and known.resolve() != path.resolve():
            raise BadInput(of, name[:200], f"names two files, {known} and {path}; rename one")
        return name


def _cells(reading: Reading, options: IntakeOptions) -> Iterator[tuple[str, Any]]:
    """(field, value) of all cells that name files."""
    columns = Columns(options)
    with open_table(reading) as table:
        for _, values in table.rows:
            for column, value in {} if isinstance(values, BadInput) else values.items():
                of = columns.use_of(column).field
                if of is None or of.name not in (*FILE_FIELDS, *PARTS_OF_FILES):
                    continue
                if value is None or (isinstance(value, str) and not fold_blanks(value)):
                    continue
                yield of.name, parse_cell(of, value)
