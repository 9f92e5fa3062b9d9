"""The order of lists of jobs, and positions in it: by any of some columns, up or down.

A list goes on after a position, not after a number of rows, so that no job is missing when others come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_

from jobs.db.tables import jobs
from render.errors import BadInput

_NEVER, _NO_PRIORITY = 0.0, -1
_COLUMNS: dict[str, ColumnElement[Any]] = {
    "created": jobs.c.created,
    "started": func.coalesce(jobs.c.started, _NEVER),
    "ended": func.coalesce(jobs.c.ended, _NEVER),
    "took": func.coalesce(jobs.c.ended - jobs.c.started, _NEVER),
    "progress": jobs.c.progress,
    "priority": func.coalesce(jobs.c.priority, _NO_PRIORITY),
    "state": jobs.c.state,
    "queue": jobs.c.queue,
    "owner": jobs.c.owner,
}
_TEXTS = ("state", "queue", "owner")
SORTS = tuple(_COLUMNS)
"""What jobs can be sorted by."""


@dataclass(frozen=True)
class Order:
    """Jobs by one column; those that are equal in it by their ids."""

    column: str = "created"
    descending: bool = True

    @classmethod
    def parse(cls, text: str) -> Order:
        """Read `queue`, or `-created` for the largest first; raises `BadInput`."""
        column = text.removeprefix("-")
        if column not in _COLUMNS:
            fix = f"is nothing to sort by; use one of {', '.join(SORTS)}, with - for the largest first"
            raise BadInput("sort", text[:40], fix)
        return cls(column, text.startswith("-"))

    def __str__(self) -> str:
        return f"{'-' if self.descending else ''}{self.column}"

    @property
    def key(self) -> ColumnElement[Any]:
        """What is compared; the column of this name in a list is `sorted_by`."""
        return _COLUMNS[self.column]

    def clauses(self, *, backwards: bool = False) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
        """For ORDER BY."""
        descending = self.descending != backwards
        return (self.key.desc() if descending else self.key.asc()), (
            jobs.c.id.desc() if backwards else jobs.c.id.asc()
        )

    def beyond(self, cursor: Cursor, *, before: bool) -> ColumnElement[bool]:
        """Condition on `jobs`: after a position, or `before` it."""
        key, id_ = self.key, jobs.c.id
        smaller = self.descending != before
        # The first condition lets an index find the position; "or" alone would read from the end of the list.
        there = key <= cursor.value if smaller else key >= cursor.value
        past = key < cursor.value if smaller else key > cursor.value
        return and_(there, or_(past, id_ < cursor.job if before else id_ > cursor.job))

    def cursor(self, text: str) -> Cursor:
        """A position that `Cursor` wrote; raises `BadInput`."""
        value, _, job = text.rpartition("_")
        try:
            return Cursor(value if self.column in _TEXTS else float(value), job)
        except ValueError as exc:
            raise BadInput("cursor", text[:60], "is not a cursor of this list; start without one") from exc


NEWEST = Order()


@dataclass(frozen=True)
class Cursor:
    """A position in a list of jobs."""

    value: float | str
    job: str

    @classmethod
    def of(cls, row: dict[str, Any]) -> Cursor:
        """That of a row with `sorted_by`."""
        return cls(row["sorted_by"], row["id"])

    def __str__(self) -> str:
        return f"{self.value if isinstance(self.value, str) else repr(float(self.value))}_{self.job}"
