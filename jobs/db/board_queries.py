"""Queries of the board beside `queries`: pages of jobs, attempts, rates, the images of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, cast, exists, func, select
from sqlalchemy.dialects.postgresql import JSONB

from infra.database import now
from jobs.db.growing import ranks_over_time
from jobs.db.job_order import NEWEST, Cursor, Order
from jobs.db.names import is_storable
from jobs.db.queries import Filter, shown_batch
from jobs.db.state_machine import HOLDING
from jobs.db.tables import attempts, batches, entries, jobs, members, rates
from render.errors import BadInput

_PROMPT = jobs.c.spec["prompt"].as_string()
_SEED = jobs.c.spec["seed"].as_string()
"""A number of up to 63 bits, which no database's integer of a JSON value has to hold."""
_WIDTH, _HEIGHT = jobs.c.spec["width"].as_integer(), jobs.c.spec["height"].as_integer()
SUMMARY = (
    *(jobs.c[name] for name in ("id", "digest", "state", "reason", "queue", "owner", "priority", "progress")),
    *(jobs.c[name] for name in ("fence", "created", "changed", "started", "ended", "root")),
    _PROMPT.label("prompt"),
    _WIDTH.label("width"),
    _HEIGHT.label("height"),
    jobs.c.spec["format"].as_string().label("format"),
    jobs.c.spec["tile_size"].as_integer().label("tile_size"),
)
"""The columns of one job in a list or a gallery."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some jobs of the list, and the cursors before and after them where there are more."""

    jobs: list[dict[str, Any]]
    newer: Cursor | None
    older: Cursor | None


def page_jobs(
    connection: Connection,
    wanted: Filter,
    limit: int,
    *,
    after: Cursor | None = None,
    before: Cursor | None = None,
    order: Order = NEWEST,
) -> Page:
    """Up to `limit` jobs in an order: those after a cursor, or those before one."""
    statement = wanted.on(select(*SUMMARY, order.key.label("sorted_by")), connection)
    place = after if before is None else before
    if place is not None:
        statement = statement.where(order.beyond(place, before=before is not None))
    statement = statement.order_by(*order.clauses(backwards=before is not None))
    # One row more than wanted shows whether there are more.
    found = _rows(connection, statement.limit(limit + 1))
    more, found = len(found) > limit, found[:limit]
    if before is not None:
        found.reverse()
    has_newer, has_older = (more, True) if before is not None else (after is not None, more)
    return Page(
        jobs=[{name: value for name, value in row.items() if name != "sorted_by"} for row in found],
        newer=Cursor.of(found[0]) if found and has_newer else None,
        older=Cursor.of(found[-1]) if found and has_older else None,
    )


def job_summary(connection: Connection, job: str) -> dict[str, Any]:
    """One job as lists show it."""
    return _rows(connection, select(*SUMMARY).where(jobs.c.id == job))[0]


def active_jobs(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """The jobs that hold slots, longest running first, each with the progress snapshot of its first node."""
    wanted = Filter(states=HOLDING)
    found = _rows(
        connection, wanted.on(select(*SUMMARY), connection).order_by(jobs.c.started, jobs.c.id).limit(limit)
    )
    group = members.alias()
    first = (
        select(func.min(group.c.place))
        .where(group.c.attempt == members.c.attempt, group.c.left_at.is_(None))
        .scalar_subquery()
    )
    snapshots = (
        select(attempts.c.job, members.c.live)
        .join(members, members.c.attempt == attempts.c.id)
        .where(attempts.c.job.in_([row["id"] for row in found]), attempts.c.ended.is_(None))
        .where(members.c.place == first)
    )
    live = {row.job: complete(row.live) for row in connection.execute(snapshots)}
    return [row | {"live": live.get(row["id"])} for row in found]


def complete(live: dict[str, Any] | None) -> dict[str, Any] | None:
    """A progress snapshot with every key present; None before the first stage has begun."""
    if not live or "stages" not in live:
        return None
    return {"step_seconds": None, "seconds_left": None, "ranks": {}} | live


def attempts_of(connection: Connection, job: str) -> list[dict[str, Any]]:
    """All attempts at a job in order, each with its nodes, their slots and their progress snapshots, and how
    many ranks it has had over time."""
    statement = (
        select(attempts, *(members.c[name] for name in ("node", "slots", "slots_before", "live", "left_at")))
        .join(members, members.c.attempt == attempts.c.id)
        .where(attempts.c.job == job)
        .order_by(attempts.c.fence, members.c.place)
    )
    found: dict[int, dict[str, Any]] = {}
    parts: dict[int, list[Any]] = {}
    for row in connection.execute(statement):
        columns = {
            name: row._mapping[name] for name in ("fence", "created", "ended", "reason", "failed_node")
        }
        attempt = found.setdefault(row.fence, columns | {"members": []})
        live, left = complete(row.live), row.left_at
        attempt["members"].append({"node": row.node, "slots": row.slots, "live": live, "left": left})
        parts.setdefault(row.fence, []).append(row)
    for fence, rows in parts.items():
        found[fence]["ranks"] = [{"since": since, "ranks": ranks} for since, ranks in ranks_over_time(rows)]
    return list(found.values())


def queue_rates(connection: Connection, seconds: float = 3600.0) -> dict[str, dict[str, float]]:
    """By queue: the images and megapixels finished within the last `seconds`."""
    pixels = func.sum(1.0 * _WIDTH * _HEIGHT)
    statement = (
        select(jobs.c.queue, func.count().label("images"), pixels.label("pixels"))
        .join(attempts, attempts.c.job == jobs.c.id)
        .where(attempts.c.ended > now() - seconds, attempts.c.reason == "done")
        .group_by(jobs.c.queue)
    )
    return {
        row.queue: {"images": row.images, "megapixels": row.pixels / 1e6}
        for row in connection.execute(statement)
    }


def show_batch(connection: Connection, batch: str) -> dict[str, Any]:
    """A batch and its number of jobs by state; raises `BadInput` for an unknown one. `channels` are names."""
    counted = (
        select(jobs.c.state, func.count().label("number"))
        .join(entries, entries.c.job == jobs.c.id)
        .where(entries.c.batch == batch)
        .group_by(jobs.c.state)
    )
    shown = shown_batch(batch_row(connection, batch))
    return shown | {"jobs": {each.state: each.number for each in connection.execute(counted)}}


def batch_row(connection: Connection, batch: str) -> Any:
    """The row of a batch; raises `BadInput` for an unknown one."""
    row = connection.execute(select(batches).where(batches.c.id == batch)).one_or_none()
    if row is None:
        raise BadInput("batch", batch, "is unknown; chorale batches shows the known ones")
    return row


def batch_rows(connection: Connection, batch: str, limit: int, after: int = -1) -> list[dict[str, Any]]:
    """Rows of a batch after row `after`, in order, each with its custom_id and its job."""
    statement = (
        select(entries.c.row, entries.c.custom_id, *SUMMARY, _SEED.label("seed"))
        .join(jobs, jobs.c.id == entries.c.job)
        .where(entries.c.batch == batch, entries.c.row > after)
        .order_by(entries.c.row)
        .limit(limit)
    )
    return [row | {"seed": int(row["seed"] or 0)} for row in _rows(connection, statement)]


def first_rows(connection: Connection, wanted: list[str], number: int) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each batch, up to `number`; the rows of a file are numbered from its second line."""
    statement = (
        select(entries.c.batch, *SUMMARY)
        .join(jobs, jobs.c.id == entries.c.job)
        .where(entries.c.batch.in_(wanted), entries.c.row <= number + 1)
        .order_by(entries.c.batch, entries.c.row)
    )
    found: dict[str, list[dict[str, Any]]] = {batch: [] for batch in wanted}
    for row in _rows(connection, statement):
        if len(found[row["batch"]]) < number:
            found[row["batch"]].append(row)
    return found


def newest_done(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """The finished images that were submitted last."""
    return page_jobs(connection, Filter(states=("done",)), limit).jobs


def known_models(connection: Connection) -> list[str]:
    """Models with at least one finished image."""
    return sorted(connection.execute(select(rates.c.model).distinct()).scalars())


def is_known_model(connection: Connection, model: str) -> bool:
    """Whether any image of this model was ever submitted."""
    return connection.execute(select(jobs.c.id).where(jobs.c.model == model).limit(1)).first() is not None


def is_known_folder(connection: Connection, field: str, path: str) -> bool:
    """Whether any image was ever submitted with this folder as a part of a field with several parts."""
    if not is_storable(path):
        return False
    if connection.dialect.name == "postgresql":
        there: ColumnElement[bool] = cast(jobs.c.spec, JSONB).contains({field: [{"path": path}]})
    else:
        parts = func.json_each(jobs.c.spec, f"$.{field}").table_valued("value")
        there = exists().select_from(parts).where(func.json_extract(parts.c.value, "$.path") == path)
    return connection.execute(select(jobs.c.id).where(there).limit(1)).first() is not None


def _rows(connection: Connection, statement: Select[Any]) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in connection.execute(statement)]
