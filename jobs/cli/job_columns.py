"""The columns of `chorale list`: those that it shows unasked, and those that can be chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from jobs.cli.terminal import plain
from jobs.db.state_machine import ENDED, HOLDING
from jobs.formatting import age, duration, percent
from render.errors import BadInput

Row = Mapping[str, Any]
_COLORS = {
    "queued": "",
    "placing": "cyan",
    "rendering": "cyan",
    "publishing": "cyan",
    "done": "green",
    "paused": "yellow",
    "failed": "red",
    "cancelled": "bright_black",
}
"""Of states, where the terminal has colors."""


def _custom_id(row: Row) -> str:
    """The name that its owner gave it; those of single images are all alike."""
    name = row.get("custom_id") or ""
    return "" if name == "image" else str(name)


def _took(row: Row) -> str:
    """How long it rendered, or has been rendering."""
    if row["state"] in HOLDING and row["started"]:
        return age(row["started"])
    ended = row["state"] in ENDED and row["started"] and row["ended"]
    return duration(row["ended"] - row["started"]) if ended else ""


def _state(row: Row) -> Text:
    """The state, or why a queued job does not start."""
    waits = row["waits_for"] and f"queued, waits for {row['waits_for']}"
    shown = plain(row["cannot_run"] or waits or row["state"])
    shown.stylize("red" if row["cannot_run"] else _COLORS.get(row["state"], ""))
    return shown


def _moment(name: str) -> Callable[[Row], str]:
    return lambda row: age(row[name]) if row[name] else ""


COLUMNS: dict[str, Callable[[Row], Any]] = {
    "id": lambda row: row["id"],
    "custom_id": _custom_id,
    "state": _state,
    "progress": lambda row: percent(row["progress"]),
    "queue": lambda row: row["queue"],
    "owner": lambda row: row["owner"],
    "priority": lambda row: "" if row["priority"] is None else row["priority"],
    "node": lambda row: ", ".join(row.get("nodes", ())),
    "age": _moment("created"),
    "started": _moment("started"),
    "ended": _moment("ended"),
    "took": _took,
    "attempts": lambda row: row.get("fence", ""),
    "reason": lambda row: row["reason"] if row["state"] == "failed" else "",
    "prompt": lambda row: row["prompt"],
}
_USUAL = (
    *("id", "custom_id", "state", "progress", "queue", "owner", "node", "age", "took", "reason", "prompt"),
)
_OPTIONAL = ("custom_id", "node", "took", "reason")
"""Left out unasked where no job has anything in them."""
_HEADINGS = {"id": "job", "custom_id": "custom id"}


def parse_columns(text: str | None) -> tuple[str, ...] | None:
    """The names in `id,state,queue`; None for no text. Raises `BadInput`."""
    if text is None:
        return None
    names = tuple(dict.fromkeys(part.strip().lower().replace("-", "_") for part in text.split(",")))
    for name in names:
        if name not in COLUMNS:
            fix = f"is no column; use some of {','.join(COLUMNS)}"
            raise BadInput("columns", name[:40], fix)
    return names


def table_of(found: Sequence[Row], columns: Sequence[str] | None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """(headings, rows) of these columns; without any, of the usual ones that have something in them."""
    cells = {name: [COLUMNS[name](row) for row in found] for name in columns or _USUAL}
    if columns is None:
        cells = {name: own for name, own in cells.items() if name not in _OPTIONAL or any(own)}
    return [_HEADINGS.get(name, name) for name in cells], list(zip(*cells.values(), strict=True))
