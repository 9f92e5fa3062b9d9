"""Logging for every process of a farm: text for people, JSON lines for machines.

Libraries call `logging.getLogger(__name__)` and pass `job`, `attempt`, `node` and `rank` as `extra`.
Processes call `configure_logging` once; their child processes inherit the choice through the environment.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TextIO

from infra.errors import BadSetting
from infra.printable import printable, printable_json

FORMATS = ("text", "json")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
FORMAT_VARIABLE = "CHORALE_LOG_FORMAT"
LEVEL_VARIABLE = "CHORALE_LOG_LEVEL"
FIELDS = ("job", "attempt", "node", "rank")
"""Attributes of a record that both formats show, in this order."""


class TextFormatter(logging.Formatter):
    """`chorale: message (node=n1 job=3fa9...)`, with the level where it is not a warning."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        level = "" if record.levelno == logging.WARNING else f"{record.levelname.lower()}: "
        text = f"chorale: {level}{record.getMessage()}" + (f" ({fields})" if fields else "")
        if record.exc_info is not None:
            text += f"\n{self.formatException(record.exc_info)}"
        # Messages quote names and prompts, and the log of `chorale up` is a terminal.
        return printable(text, keep="\n\t")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the fields, and the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        } | _fields(record)
        if record.exc_info is not None:
            document["exception"] = self.formatException(record.exc_info)
        return printable_json(json.dumps(document, default=str, ensure_ascii=False))


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, to be told apart from those of others."""


def configure_logging(
    form: str | None = None, verbosity: int | None = None, stream: TextIO | None = None
) -> None:
    """Send all records to `stream` (stderr), in `form` ("text" or "json").

    `verbosity` 0 shows warnings and errors, 1 also information, 2 everything. What is None is taken from the
    environment, else text and 0. The choice is put into the environment for child processes.
    Raises `BadSetting` for an unknown format or level.
    """
    form = form or os.environ.get(FORMAT_VARIABLE) or "text"
    if form not in FORMATS:
        raise BadSetting("log_format", form, f"is unknown; use {' or '.join(FORMATS)}")
    level = _level(verbosity)
    os.environ[FORMAT_VARIABLE], os.environ[LEVEL_VARIABLE] = form, level
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    # Handlers of others, such as a test's, stay.
    root.handlers[:] = [each for each in root.handlers if not isinstance(each, _Handler)] + [handler]
    root.setLevel(level)
    # Libraries report each request and each connection as information; that is debugging to us.
    for name in ("alembic", "botocore", "boto3", "celery", "httpx", "kombu", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def _level(verbosity: int | None) -> str:
    if verbosity:
        return "INFO" if verbosity == 1 else "DEBUG"
    level = os.environ.get(LEVEL_VARIABLE, "").upper() or "WARNING"
    if level not in LEVELS:
        raise BadSetting("log_level", level, f"is unknown; use one of {', '.join(LEVELS)}")
    return level


def _fields(record: logging.LogRecord) -> dict[str, object]:
    found = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value for name, value in found.items() if value is not None}
