"""Images of a batch as people name them: custom ids, or sets of those that reviewers have made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from jobs.db.reviews import SETS, review_rows
from render.errors import BadInput

Rows = Callable[[str | None], Sequence[Mapping[str, Any]]]
"""The images of a batch, all of them or those of a set."""


def resolve(rows: Rows, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The custom ids that some texts name, and those of the sets that they name. Raises `BadInput`."""
    states = {row["custom_id"]: row["state"] for row in rows(None)}
    ids: list[str] = []
    members: list[str] = []
    for text in texts:
        for part in [text] if text in states else text.split(","):
            if part in states:
                ids.append(part)
            elif part == "all":
                members += [name for name, state in states.items() if state == "done"]
            elif part in SETS:
                members += [row["custom_id"] for row in rows(part)]
            else:
                problem = "is no image of this batch; use custom ids, or one of"
                raise BadInput("images", part[:80], f"{problem} {', '.join((*SETS, 'all'))}")
    return ids, members


def named_images(connection: Connection, batch: str, texts: Sequence[str]) -> tuple[str, ...]:
    """The custom ids that these texts name, each once. Raises `BadInput` for none."""
    ids, members = resolve(lambda chosen: review_rows(connection, batch, chosen=chosen), texts)
    found = tuple(dict.fromkeys(ids + members))
    if not found:
        raise BadInput("images", ",".join(texts)[:80], "are none in this batch; name others")
    return found
