"""The audit log: who changed jobs, queues and nodes, deleted files, or logged in. Lines are never changed.

A line is written in the transaction of what it tells of: there is neither an act without its line, nor a line
of an act that did not happen.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import Connection, insert, select

from infra.database import insert_unless_there, now
from infra.printable import printable
from jobs.db import tables
from jobs.db.names import longest

ACTIONS = (
    "cancel", "pause", "resume", "retry", "priority", "set queue", "delete queue", "drain", "undrain",
    "delete files", "delete", "log in", "re-roll", "add model", "remove model", "generate", "edit",
    "add webhook", "remove webhook", "test webhook", "renditions", "move", "comment", "tag", "untag",
    "restart", "add maintenance", "remove maintenance", "set budget", "remove budget",
)  # fmt: skip
_SESSIONS = "board sessions"
_LONGEST_TARGET = 500


def record(connection: Connection, who: str, action: str, target: str, **details: Any) -> None:
    """Add a line. `action` is one of `ACTIONS`; `details` are values of JSON."""
    assert action in ACTIONS
    values = {
        "time": now(),
        "who": printable(who)[: longest(tables.audit.c.who)],
        "action": action,
        "target": printable(target)[:_LONGEST_TARGET],
        "details": details,
    }
    connection.execute(insert(tables.audit).values(**values))


def list_acts(
    connection: Connection, limit: int, *, since: float | None = None, who: str = "", action: str = ""
) -> list[dict[str, Any]]:
    """The newest lines, newest first. `since` is in seconds since the epoch; `who` is a part of the name."""
    found = select(tables.audit).order_by(tables.audit.c.number.desc()).limit(limit)
    if since is not None:
        found = found.where(tables.audit.c.time >= since)
    if who:
        found = found.where(tables.audit.c.who.contains(who, autoescape=True))
    if action:
        found = found.where(tables.audit.c.action == action)
    return [dict(row._mapping) for row in connection.execute(found)]


def session_secret(connection: Connection) -> bytes:
    """The secret of this farm's boards, made when the first one asks for it."""
    made = {"name": _SESSIONS, "value": secrets.token_hex(32)}
    connection.execute(insert_unless_there(connection, tables.secrets), [made])
    value = select(tables.secrets.c.value).where(tables.secrets.c.name == _SESSIONS)
    return bytes.fromhex(connection.execute(value).scalar_one())
