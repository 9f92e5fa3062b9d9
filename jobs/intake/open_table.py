"""Opens a batch file by its ending."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jobs.intake.delimited import open_delimited
from jobs.intake.json_lines import open_json_lines
from jobs.intake.raw_rows import Reading, Table
from jobs.intake.workbook import open_workbook
from jobs.intake.yaml_rows import open_yaml
from render.errors import BadInput
from render.spec.files import home_path

READERS = {
    ".csv": open_delimited,
    ".tsv": open_delimited,
    ".tab": open_delimited,
    ".xlsx": open_workbook,
    ".xlsm": open_workbook,
    ".jsonl": open_json_lines,
    ".ndjson": open_json_lines,
    ".yaml": open_yaml,
    ".yml": open_yaml,
}
ENDINGS = tuple(READERS)
_FILE = re.compile(
    # Endings that no prompt has: other tables, documents and pictures.
    r"\S+\.(xls|xlsb|ods|numbers|json|xml|parquet|feather|sqlite|db|txt|md|docx?|odt|pdf|html?|toml|ini"
    r"|zip|gz|png|jpe?g|webp|tiff?|gif|bmp|avif|heic|psd|svg)",
    re.IGNORECASE,
)


def batch_file(text: str) -> Path | None:
    """The batch file that a prompt names; None for words. Raises `BadInput` for any other file.

    A file is never taken for a prompt, whatever its ending.
    """
    text = text.strip()
    if text == "-":
        raise BadInput(
            "prompt", text, f"would be standard input, which is not read; give a {_endings()} file"
        )
    path = home_path(text) if text.startswith("~/") else Path(text)
    if path.suffix.lower() in READERS:
        return path
    if _is_folder(text, path):
        raise BadInput("prompt", text, f"is a folder; name a {_endings()} file in it")
    if _FILE.fullmatch(text) or _exists(path):
        raise BadInput("prompt", text, f"is a file of another kind than {_endings()}; save it as one of them")
    return None


def _is_folder(text: str, path: Path) -> bool:
    """Whether a text is a folder's path; a word alone is a prompt, whatever there is in this folder."""
    try:
        return ("/" in text or "\\" in text or text in (".", "..")) and path.is_dir()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _endings() -> str:
    return f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"


@contextmanager
def open_table(reading: Reading) -> Iterator[Table]:
    """The rows of a batch file; raises `BadInput` for a file that is none, also while rows are read."""
    path = reading.path
    opened = READERS.get(path.suffix.lower())
    if opened is None:
        raise BadInput("batch", str(path), f"has an unknown ending; use one of {', '.join(ENDINGS)}")
    try:
        with ExitStack() as files:
            yield opened(reading, files)
    except OSError as exc:
        raise BadInput("batch", str(path), f"cannot be read ({exc.strerror or exc}); check the path") from exc
