"""What people change of nodes: draining, comments and tags. Each change leaves a line in the audit log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select

from jobs.db.audit import record
from jobs.db.nodes import change_row, set_draining, unknown_node
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
) -> dict[str, Any]:
    """Change what is given, and return it as it is then: `node`, `draining`, `comment`, `tags`.

    Raises `BadInput` for an unknown node, for nothing, and for what cannot be.
    """
    added, removed = parse_tags("tag", add_tags), parse_tags("tag", remove_tags)
    if draining is None and comment is None and not (added or removed):
        raise BadInput("node", name, "would stay as it is; give draining, a comment or tags")
    now: dict[str, Any] = {"node": name}
    if draining is not None:
        set_draining(connection, name, draining)
        record(connection, who, "drain" if draining else "undrain", f"node {name}")
        now["draining"] = draining
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
