"""Maintenance of nodes: times in which a node takes no jobs, once or again and again.

No job starts that is expected to run into it (`jobs.scheduler.placement`). The dispatcher marks a node while
its maintenance lasts, and the node is drained as long as it is marked.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from infra.database import now
from jobs.db.names import longest, unknown_node
from jobs.db.tables import maintenance, nodes
from jobs.db.time_window import TimeWindow
from render.errors import BadInput

MOST_ENTRIES = 20
"""Of one node."""


@dataclass(frozen=True, kw_only=True)
class Maintenance:
    """One entry of a node. Times are in seconds since the epoch."""

    id: str
    time_window: str | None = None
    """When it comes again and again, as a queue's window; None for one that has a beginning and an end."""
    begins: float = 0.0
    ends: float = 0.0

    def next(self, moment: float) -> tuple[float, float] | None:
        """(begin, end) of the one that lasts at a moment, which is its begin then, or of the next one; None
        where it is over."""
        if self.time_window is None:
            return None if self.ends <= moment else (max(moment, self.begins), self.ends)
        begins, ends = _occurrence(self.time_window, int(moment // 60))
        return max(moment, begins), ends

    def shown(self, moment: float) -> dict[str, Any]:
        """As lists show it: `begins` and `ends` are of the next one, or the one that lasts (`active`)."""
        found = self.next(moment)
        begins, ends = (self.begins, self.ends) if found is None else found
        active = found is not None and begins <= moment
        own = {"begins": begins, "ends": ends, "active": active}
        return {"id": self.id, "time_window": self.time_window, **own}


@lru_cache(maxsize=4096)
def _occurrence(text: str, minute: int) -> tuple[float, float]:
    """(begin, end) of a window at a minute since the epoch. Windows change at whole minutes, and finding out
    when takes a millisecond, which each round would need for each node."""
    window, at = TimeWindow.parse(text), 60.0 * minute
    change = window.next_change(at)
    return (at, change) if window.is_open(at) else (change, window.next_change(change))


def next_maintenance(entries: Iterable[Maintenance], moment: float) -> tuple[float, float] | None:
    """(begin, end) of what lasts at a moment or comes next; None without any."""
    return min((found for each in entries if (found := each.next(moment)) is not None), default=None)


def seconds_until(entries: Iterable[Maintenance], moment: float) -> tuple[float, float] | None:
    """The seconds from a moment to the begin and the end of what lasts then or comes next."""
    found = next_maintenance(entries, moment)
    return None if found is None else (found[0] - moment, found[1] - moment)


def entries_by_node(connection: Connection) -> dict[str, list[Maintenance]]:
    """All entries, by node, those that begin first before the others."""
    found: dict[str, list[Maintenance]] = {}
    rows = select(maintenance).order_by(maintenance.c.node, maintenance.c.begins, maintenance.c.id)
    for row in connection.execute(rows):
        own = {"id": row.id, "time_window": row.time_window}
        entry = Maintenance(**own, begins=row.begins or 0.0, ends=row.ends or 0.0)
        found.setdefault(row.node, []).append(entry)
    return found


def add_maintenance(
    connection: Connection,
    node: str,
    *,
    window: str | None = None,
    begins: float | None = None,
    ends: float | None = None,
) -> dict[str, Any]:
    """Plan maintenance of a node: in a window, or from `begins` (now, unless given) to `ends`. Raises
    `BadInput`. Returns it as lists show it."""
    moment: float = connection.execute(select(now())).scalar_one()
    if connection.execute(select(nodes.c.name).where(nodes.c.name == node)).first() is None:
        raise unknown_node(node)
    if (window is None) == (ends is None) or (window is not None and begins is not None):
        raise BadInput("maintenance", None, "needs a window such as 22:00-23:00, or an end (and a beginning)")
    if len(entries_by_node(connection).get(node, ())) >= MOST_ENTRIES:
        raise BadInput("maintenance", node, f"has {MOST_ENTRIES} entries already; remove one")
    entry = Maintenance(
        id=secrets.token_hex(4),
        time_window=None if window is None else _stored_window(window),
        begins=moment if begins is None else begins,
        ends=ends or 0.0,
    )
    if window is None and not entry.begins < entry.ends:
        raise BadInput("maintenance", None, "ends before it begins; give a later end")
    if window is None and entry.ends <= moment:
        raise BadInput("maintenance", None, "is over already; give a later end")
    times = {} if window is not None else {"begins": entry.begins, "ends": entry.ends}
    connection.execute(
        insert(maintenance).values(id=entry.id, node=node, time_window=entry.time_window, **times)
    )
    return entry.shown(moment)


def _stored_window(text: str) -> str:
    stored = str(TimeWindow.parse(text))
    if len(stored) > longest(maintenance.c.time_window):
        raise BadInput("window", text[:60], "is too long; name fewer days")
    return stored


def remove_maintenance(connection: Connection, node: str, id: str) -> None:
    """Remove an entry; a node that is drained for it takes jobs again with the next round. Raises `BadInput`
    for one that the node does not have."""
    own = (maintenance.c.node == node) & (maintenance.c.id == id)
    if connection.execute(delete(maintenance).where(own)).rowcount == 0:
        fix = f"is no maintenance of node {node}; chorale node maintenance {node} shows those that it has"
        raise BadInput("maintenance", id[:40], fix)


def keep_maintenance(connection: Connection, moment: float | None = None) -> None:
    """Mark the nodes whose maintenance lasts, and no others; for each round of the dispatcher.

    `moment` is the time at which it is looked at, in seconds since the epoch; default now.
    """
    entries = entries_by_node(connection)
    marked = select(nodes.c.name, nodes.c.maintained_until).where(nodes.c.maintained_until.is_not(None))
    known = {row.name: row.maintained_until for row in connection.execute(marked)}
    if not entries and not known:
        return
    at: float = connection.execute(select(now())).scalar_one() if moment is None else moment
    wanted = {
        node: max(lasting)
        for node, own in entries.items()
        if (lasting := [found[1] for each in own if (found := each.next(at)) is not None and found[0] <= at])
    }
    for node in sorted({*known, *wanted}):
        if known.get(node) != wanted.get(node):
            change = update(nodes).where(nodes.c.name == node)
            connection.execute(change.values(maintained_until=wanted.get(node)))
    over = maintenance.c.time_window.is_(None) & (maintenance.c.ends <= at)
    if any(each.next(at) is None for own in entries.values() for each in own):
        connection.execute(delete(maintenance).where(over))
