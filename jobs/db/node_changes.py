"""What people change of nodes: draining, comments, tags and restarts, each with a line in the audit log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select

from jobs.db.audit import record
from jobs.db.maintenance import add_maintenance, entries_by_node, remove_maintenance
from jobs.db.names import unknown_node
from jobs.db.nodes import ask_restart, change_row, set_draining
from jobs.db.tables import nodes
from jobs.tags import MOST_TAGS, parse_tags, read_tags, stored_tags
from render.errors import BadInput

MOST_COMMENT = 500
"""Characters of what people say of a node."""


def change_node(
    connection: Connection,
    name: str,
    who: str,
    *,
    draining: bool | None = None,
    comment: str | None = None,
    add_tags: Iterable[str] = (),
    remove_tags: Iterable[str] = (),
    restart: bool = False,
) -> dict[str, Any]:
    """Change what is given, and return it as it is then: `node`, `draining`, `comment`, `tags`, `restart`.

    Raises `BadInput` for an unknown node, for nothing, and for what cannot be.
    """
    added, removed = parse_tags("tag", add_tags), parse_tags("tag", remove_tags)
    if draining is None and comment is None and not (added or removed or restart):
        raise BadInput("node", name, "would stay as it is; give draining, a comment or tags")
    now: dict[str, Any] = {"node": name}
    if draining is not None:
        set_draining(connection, name, draining)
        record(connection, who, "drain" if draining else "undrain", f"node {name}")
        now["draining"] = draining
    if restart:
        ask_restart(connection, name)
        record(connection, who, "restart", f"node {name}")
        now["restart"] = True
    if comment is not None:
        now["comment"] = _checked_comment(comment)
        change_row(connection, name, comment=now["comment"])
        record(connection, who, "comment", f"node {name}", comment=now["comment"])
    if added or removed:
        now["tags"] = _change_tags(connection, name, added, removed)
        for action, tags in (("tag", added), ("untag", removed)):
            if tags:
                record(connection, who, action, f"node {name}", tags=list(tags))
    return now


def plan_maintenance(connection: Connection, name: str, who: str, **times: Any) -> dict[str, Any]:
    """Plan maintenance of a node, see `jobs.db.maintenance.add_maintenance`."""
    made = add_maintenance(connection, name, **times)
    shown = {key: made[key] for key in (("time_window",) if made["time_window"] else ("begins", "ends"))}
    record(connection, who, "add maintenance", f"node {name}", id=made["id"], **shown)
    return made


def cancel_maintenance(connection: Connection, name: str, id: str, who: str) -> None:
    """Remove an entry of a node, or `all` of them. Raises `BadInput` for one that it does not have."""
    own = entries_by_node(connection).get(name, [])
    for each in [entry.id for entry in own] if id == "all" else [id]:
        remove_maintenance(connection, name, each)
        record(connection, who, "remove maintenance", f"node {name}", id=each)


def _checked_comment(text: str) -> str:
    comment = " ".join(text.split())
    if len(comment) > MOST_COMMENT:
        raise BadInput("comment", comment[:60], f"has {len(comment)} characters; use at most {MOST_COMMENT}")
    if not comment.isprintable():
        raise BadInput("comment", comment[:60], "has characters that do not print; use letters and digits")
    return comment


def _change_tags(
    connection: Connection, name: str, added: tuple[str, ...], removed: tuple[str, ...]
) -> list[str]:
    """The tags that the node has then, with those of its agent's settings."""
    columns = select(nodes.c.tags, nodes.c.own_tags).where(nodes.c.name == name)
    row = connection.execute(columns.with_for_update()).one_or_none()
    if row is None:
        raise unknown_node(name)
    given, own = read_tags(row.tags), read_tags(row.own_tags)
    for tag in removed:
        if tag not in given:
            fix = f"is no tag of node {name}; chorale nodes shows those that it has"
            if tag in own:
                fix = f"comes from the settings of node {name}; start its agent without it (CHORALE_TAGS)"
            raise BadInput("tag", tag, fix)
    tags = given.union(added).difference(removed)
    if len(tags) > MOST_TAGS:
        raise BadInput("tag", len(tags), f"tags are too many; use at most {MOST_TAGS}")
    change_row(connection, name, tags=stored_tags(tags))
    return sorted(tags | own)
