"""Database URLs: checked when they are read, and shown without anything that may be a password."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from infra.errors import BadSetting
from infra.settings import redact_url

_SHOWN = frozenset({"host", "port", "dbname", "user", "sslmode", "target_session_attrs", "mode"})
"""Query parameters that may be shown; any other may hold a secret."""
_ESCAPES = "write the characters / @ # ? and : of a password as %2F %40 %23 %3F and %3A"


def parse_database_url(text: str) -> URL:
    """The parsed URL, with the driver that we use. Raises `BadSetting`, which shows no password."""
    if text.startswith("postgresql://"):
        text = text.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as exc:
        fix = f"is not a database URL; use sqlite:///farm.db or postgresql://user@host/name, and {_ESCAPES}"
        raise BadSetting("database_url", redact_url(text), fix) from exc
    at_a_wrong_place = "@" in (url.host or "") or ":" in (url.username or "") or "@" in (url.username or "")
    if not url.drivername.startswith("sqlite") and (at_a_wrong_place or "@" in (url.database or "")):
        # Part of a password was taken for the host, the user or the database.
        raise BadSetting("database_url", redact_url(text), f"cannot be split into its parts; {_ESCAPES}")
    return url


def sqlite_url(file: Path) -> str:
    """The URL of an SQLite file; `parse_database_url` finds the same file by it."""
    return f"sqlite:///{quote(str(file))}"


def shown_database_url(url: URL) -> str:
    """The URL with every secret replaced by `***`: the password, and unknown parameters."""
    query = {name: value if name in _SHOWN else "***" for name, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
