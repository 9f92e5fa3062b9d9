"""Jobs and batches that a submission waits for, from the ids that people give."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from infra.database import Database
from jobs.db.dependencies import Predecessor
from jobs.db.queries import find_job
from jobs.db.tables import batches
from jobs.errors import UnknownJob
from render.errors import BadInput

MAX_PREDECESSORS = 50
"""Of one submission; a batch counts as one."""
_LONGEST_ID = 32


def find_predecessors(
    database: Database, after: Sequence[str], after_any: Sequence[str]
) -> tuple[Predecessor, ...]:
    """The jobs and batches that these ids, or beginnings of jobs' ids, name; several in one text by commas.

    Raises `BadInput` for an id that neither a job nor a batch has, and for a batch that is being submitted.
    """
    named = [("after", text, False) for text in _split(after)]
    named += [("after_any", text, True) for text in _split(after_any)]
    if len(named) > MAX_PREDECESSORS:
        fix = f"jobs and batches are too many; use at most {MAX_PREDECESSORS}, or a batch of them"
        raise BadInput("after", len(named), fix)
    if not named:
        return ()
    with database.read() as connection:
        found = [_find(connection, field, text, any) for field, text, any in named]
    return tuple(dict.fromkeys(found))


def _split(texts: Sequence[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _find(connection: Connection, field: str, text: str, any: bool) -> Predecessor:
    if len(text) > _LONGEST_ID or not (text.isascii() and text.isalnum()):
        raise BadInput(field, text[:80], "is no id of a job or batch; chorale list and batches show them")
    batch = connection.execute(select(batches).where(batches.c.id == text)).one_or_none()
    if batch is not None:
        if batch.submitted is None:
            raise BadInput(field, text, "is still being submitted; try again when it is")
        return Predecessor(kind="batch", id=text, any=any)
    try:
        return Predecessor(kind="job", id=find_job(connection, text), any=any)
    except UnknownJob as exc:
        fix = "is neither a job nor a batch; chorale list and chorale batches show the known ones"
        if "ambiguous" in str(exc):
            fix = "begins the ids of several jobs; use more of the id"
        raise BadInput(field, text, fix) from exc
