"""Read-only queries of jobs and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from jobs.db.dependencies import show_dependency
from jobs.db.folders import image_folder
from jobs.db.job_order import NEWEST, Order
from jobs.db.prompt_search import matching
from jobs.db.state_machine import STATES
from jobs.db.tables import attempts, batches, entries, events, jobs, members
from jobs.errors import UnknownJob
from jobs.tags import read_tags

_COLUMNS = (
    "id",
    "state",
    "reason",
    "queue",
    "owner",
    "priority",
    "progress",
    "fence",
    "attempts",
    "created",
    "changed",
    "started",
    "ended",
)
_CHUNK = 5000
"""Ids of one query: databases limit how many values it may have."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Selects jobs; the default selects all of them."""

    states: tuple[str, ...] = ()
    queue: str | None = None
    owner: str | None = None
    batch: str | None = None
    job: str | None = None
    search: str | None = None
    """Words of the prompt or their prefixes, or the prefix of an id; see `jobs.db.prompt_search`."""

    def on(self, statement: Select[Any], connection: Connection) -> Select[Any]:
        if self.states:
            statement = statement.where(jobs.c.state.in_(self.states))
        if self.job:
            statement = statement.where(jobs.c.id == self.job)
        if self.queue:
            statement = statement.where(jobs.c.queue == self.queue)
        if self.owner:
            statement = statement.where(jobs.c.owner == self.owner)
        if self.batch:
            statement = statement.where(
                jobs.c.id.in_(select(entries.c.job).where(entries.c.batch == self.batch))
            )
        if self.search:
            statement = statement.where(matching(connection, self.search))
        return statement


def list_jobs(
    connection: Connection, wanted: Filter, limit: int, order: Order = NEWEST
) -> list[dict[str, Any]]:
    """The selected jobs, newest first unless told otherwise."""
    columns = [jobs.c[name] for name in _COLUMNS]
    prompt = jobs.c.spec["prompt"].as_string().label("prompt")
    statement = wanted.on(select(*columns, prompt), connection)
    first = statement.order_by(*order.clauses()).limit(limit)
    return [dict(row._mapping) for row in connection.execute(first)]


def with_names(
    connection: Connection, found: Sequence[dict[str, Any]], batch: str | None = None
) -> list[dict[str, Any]]:
    """These jobs, each with its `custom_id` (in `batch`, else in its newest one; None without) and the
    `nodes` of its newest attempt."""
    names: dict[str, str] = {}
    nodes: dict[str, list[str]] = {}
    ids = [row["id"] for row in found]
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        named = select(entries.c.job, entries.c.custom_id).join(batches, batches.c.id == entries.c.batch)
        named = named.where(entries.c.job.in_(part)).order_by(batches.c.created)
        if batch is not None:
            named = named.where(entries.c.batch == batch)
        names.update((row.job, row.custom_id) for row in connection.execute(named))
        placed = (
            select(attempts.c.job, members.c.node)
            .join(members, members.c.attempt == attempts.c.id)
            .join(jobs, (jobs.c.id == attempts.c.job) & (jobs.c.fence == attempts.c.fence))
            .where(attempts.c.job.in_(part))
            .order_by(attempts.c.job, members.c.place)
        )
        for row in connection.execute(placed):
            nodes.setdefault(row.job, []).append(row.node)
    return [row | {"custom_id": names.get(row["id"]), "nodes": nodes.get(row["id"], [])} for row in found]


def job_ids(connection: Connection, wanted: Filter) -> list[str]:
    return list(connection.execute(wanted.on(select(jobs.c.id), connection)).scalars())


def count_jobs(connection: Connection, wanted: Filter) -> dict[str, int]:
    """The number of jobs in each state, including states without any."""
    statement = wanted.on(select(jobs.c.state, func.count().label("number")), connection)
    counts = {row.state: row.number for row in connection.execute(statement.group_by(jobs.c.state))}
    return dict.fromkeys(STATES, 0) | counts


def find_job(connection: Connection, prefix: str) -> str:
    """The job whose id has this prefix; raises `UnknownJob` for none and for more than one."""
    # LIKE would interpret wildcards in what a person types.
    statement = select(jobs.c.id).where(jobs.c.id >= prefix, jobs.c.id < prefix + "g").limit(2)
    found: list[str] = list(connection.execute(statement).scalars())
    if not prefix or not found:
        raise UnknownJob(f"unknown job {prefix!r}; chorale list shows the known ones")
    if len(found) > 1:
        raise UnknownJob(f"job {prefix!r} is ambiguous; use more of its id, as in {found[0]}")
    return found[0]


def show_job(connection: Connection, job: str) -> dict[str, Any]:
    """A job's row (without its search words), its tags, what it waits for, its batches and its events."""
    columns = [column for column in jobs.c if column.name not in ("words", "dependency", "require_tag")]
    asked = connection.execute(select(jobs.c.dependency, jobs.c.require_tag).where(jobs.c.id == job)).one()
    row = connection.execute(select(*columns).where(jobs.c.id == job)).one()
    history = connection.execute(select(events).where(events.c.job == job).order_by(events.c.number))
    member_of = connection.execute(
        select(entries.c.batch, entries.c.custom_id).where(entries.c.job == job).order_by(entries.c.batch)
    )
    return dict(row._mapping) | {
        "folder": image_folder(connection, job),
        "after": show_dependency(connection, asked.dependency),
        "require_tag": sorted(read_tags(asked.require_tag)),
        "batches": [dict(entry._mapping) for entry in member_of],
        "events": [dict(event._mapping) for event in history],
    }


def list_batches(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """The batches, newest first, each with its number of jobs by state."""
    newest = list(connection.execute(select(batches).order_by(batches.c.created.desc()).limit(limit)))
    counts = _counts_of([batch.id for batch in newest], connection)
    return [shown_batch(batch) | {"jobs": counts.get(batch.id, {})} for batch in newest]


def shown_batch(row: Any) -> dict[str, Any]:
    """A batch's row as lists show it: of its channels the names."""
    shown = {name: value for name, value in row._mapping.items() if name != "channels_open"}
    return shown | {"channels": sorted(row.channels or {})}


def _counts_of(ids: Sequence[str], connection: Connection) -> dict[str, dict[str, int]]:
    statement = (
        select(entries.c.batch, jobs.c.state, func.count())
        .join(jobs, jobs.c.id == entries.c.job)
        .where(entries.c.batch.in_(ids))
        .group_by(entries.c.batch, jobs.c.state)
    )
    counts: dict[str, dict[str, int]] = {}
    for batch, state, count in connection.execute(statement):
        counts.setdefault(batch, {})[state] = count
    return counts
