"""Reports: jobs done, time spent, failures and their nodes, jobs still missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from infra.database import now
from jobs.db.budgets import list_budgets
from jobs.db.deleted_jobs import DeletedJob, deleted_since
from jobs.db.growing import slot_stays
from jobs.db.slot_time import Stay, slot_seconds
from jobs.db.state_machine import ENDED
from jobs.db.tables import attempts, batches, entries, jobs, members
from jobs.db.uptimes import Uptime, uptimes_between
from jobs.estimate import estimate

_SLOWEST_JOBS = 5
_IMAGES = 8
"""The newest ones, for a picture of them."""
_CHUNK = 5000
"""Ids of one query: databases limit how many values it may have."""
_FIGURES = ("jobs", "done", "failed", "megapixels", "model_seconds", "slot_seconds", "lost_slot_seconds")
_NODE_FIGURES = ("slot_seconds", "lost_slot_seconds", "idle_slot_seconds", "failed_attempts")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Selects the jobs of a report; `since` is in seconds since the epoch."""

    queue: str | None = None
    batch: str | None = None
    since: float = 0.0

    def has(self, job: DeletedJob) -> bool:
        """Whether a deleted job belongs to it."""
        in_queue = self.queue is None or job.queue == self.queue
        return in_queue and (self.batch is None or self.batch in job.batch_ids)


def make_report(connection: Connection, scope: Scope) -> dict[str, Any]:
    """The report as JSON types; times in seconds."""
    moment: float = connection.execute(select(now())).scalar_one()
    chosen = _jobs(connection, scope)
    gone = list(deleted_since(connection, scope.since))
    spent = _spent(connection, scope.since, moment, gone)
    deleted = {job.id: job for job in gone if scope.has(job)}
    # Receipts are of everything that has run; what is told of single jobs is of those that are still there.
    every = chosen | deleted
    mine = {job: spent.get(job, _TimeSpent()) for job in every}
    counts: dict[str, int] = defaultdict(int)
    for row in chosen.values():
        counts[row.state] += 1
    first = min((row.created for row in every.values()), default=moment)
    since = scope.since or first
    done = [row for row in chosen.values() if row.state == "done"]
    slowest = sorted(done, key=lambda row: mine[row.id].seconds, reverse=True)[:_SLOWEST_JOBS]
    newest = sorted(done, key=lambda row: row.ended or 0.0, reverse=True)[:_IMAGES]
    idle = _idle(uptimes_between(connection, since, moment, max(since, first)), spent)
    return {
        "at": moment,
        "since": since,
        "jobs": dict(counts),
        "deleted": len(deleted),
        "missing": [row.id for row in chosen.values() if row.state not in ENDED],
        "failed": [
            {"job": row.id, "prompt": row.prompt, "reason": row.reason, "node": mine[row.id].failed_on}
            for row in chosen.values()
            if row.state == "failed"
        ],
        "reasons": _reasons(chosen, mine),
        "images": [{"job": row.id, "prompt": row.prompt} for row in newest],
        "megapixels": sum(row.width * row.height for row in every.values() if row.state == "done") / 1e6,
        "model_seconds": sum(row.model_seconds for row in every.values()),
        "slot_seconds": sum(each.seconds for each in mine.values()),
        "lost_slot_seconds": sum(each.lost for each in mine.values()),
        "idle_slot_seconds": sum(idle.values()),
        "retries": sum(max(0, each.attempts - 1) for each in mine.values()),
        "owners": _totals(every, mine, {row.id: [row.owner] for row in every.values()}),
        "batches": _totals(every, mine, _batches(connection, scope, deleted)),
        "nodes": _nodes(mine, idle),
        "budgets": [each.to_dict() for each in list_budgets(connection)],
        "estimate": estimate(connection),
        "slowest": [
            {"job": row.id, "prompt": row.prompt, "slot_seconds": mine[row.id].seconds} for row in slowest
        ],
    }


@dataclass
class _TimeSpent:
    """Slot seconds of a job's attempts. `lost` are those of attempts that ended without an image."""

    seconds: float = 0.0
    lost: float = 0.0
    attempts: int = 0
    failed_on: str | None = None
    nodes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    """By node: slot seconds, and those of them that were lost."""
    failures: list[str] = field(default_factory=list)
    """The nodes that attempts failed on."""
    stays: list[Stay] = field(default_factory=list)
    """All of them, slot by slot."""


def _jobs(connection: Connection, scope: Scope) -> dict[str, Any]:
    """The jobs that have not ended, or have ended in the period."""
    prompt = jobs.c.spec["prompt"].as_string().label("prompt")
    sides = [jobs.c.spec[name].as_integer().label(name) for name in ("width", "height")]
    names = ("id", "state", "reason", "owner", "created", "ended", "model_seconds")
    columns = [jobs.c[name] for name in names]
    recent = jobs.c.ended.is_(None) | (jobs.c.ended >= scope.since) | jobs.c.state.not_in(ENDED)
    statement = select(*columns, *sides, prompt).where(recent).order_by(jobs.c.created, jobs.c.id)
    if scope.queue is not None:
        statement = statement.where(jobs.c.queue == scope.queue)
    if scope.batch is not None:
        statement = statement.where(
            jobs.c.id.in_(select(entries.c.job).where(entries.c.batch == scope.batch))
        )
    return {row.id: row for row in connection.execute(statement)}


def _spent(
    connection: Connection, since: float, moment: float, deleted: Iterable[DeletedJob]
) -> dict[str, _TimeSpent]:
    statement = (
        select(attempts, *(members.c[name] for name in ("node", "slots", "slots_before", "left_at")))
        .join(members, members.c.attempt == attempts.c.id)
        .where((attempts.c.ended.is_(None)) | (attempts.c.ended >= since))
        .order_by(attempts.c.created)
    )
    rows: list[Any] = list(connection.execute(statement))
    rows += [
        each for job in deleted for each in job.attempts if each.ended is not None and each.ended >= since
    ]
    found: dict[str, _TimeSpent] = defaultdict(_TimeSpent)
    for row in rows:
        begin, end = max(since, row.created), moment if row.ended is None else row.ended
        end = end if row.left_at is None else min(end, row.left_at)
        found[row.job].stays += slot_stays(row, min(begin, end), end)
    for row in {row.id: row for row in rows}.values():
        each = found[row.job]
        each.attempts = max(each.attempts, row.fence)
        if row.ended is not None and row.reason != "done" and row.failed_node:
            each.failed_on = row.failed_node
            each.failures.append(row.failed_node)
    _deal_out(found, {row.id: row for row in rows})
    return found


def spent_by_owner(connection: Connection, since: float, until: float) -> dict[str, float]:
    """Slot seconds of all owners between two moments, the second of which is now."""
    gone = list(deleted_since(connection, since))
    spent = _spent(connection, since, until, gone)
    owners = {job.id: job.owner for job in gone}
    ids = [job for job in spent if job not in owners]
    for start in range(0, len(ids), _CHUNK):
        named = select(jobs.c.id, jobs.c.owner).where(jobs.c.id.in_(ids[start : start + _CHUNK]))
        owners |= {row.id: row.owner for row in connection.execute(named)}
    found: dict[str, float] = defaultdict(float)
    for job, each in spent.items():
        if job in owners:
            found[owners[job]] += each.seconds
    return dict(found)


def _deal_out(found: Mapping[str, _TimeSpent], rows: Mapping[str, Any]) -> None:
    """Add the slot seconds of each node to the jobs whose attempts had them; `rows` are attempts by id."""
    stays: dict[str, list[Stay]] = defaultdict(list)
    for each in found.values():
        for stay in each.stays:
            stays[stay.slot[0]].append(stay)
    for node, own in stays.items():
        for attempt, seconds in slot_seconds(own).items():
            row, each = rows[attempt], found[rows[attempt].job]
            lost = seconds if row.ended is not None and row.reason != "done" else 0.0
            each.seconds += seconds
            each.lost += lost
            each.nodes[node][0] += seconds
            each.nodes[node][1] += lost


def _reasons(chosen: Mapping[str, Any], spent: Mapping[str, _TimeSpent]) -> list[dict[str, Any]]:
    """Why jobs failed, the commonest reason first, and the nodes that their last attempts failed on."""
    found: dict[str, list[str | None]] = defaultdict(list)
    for job, row in chosen.items():
        if row.state == "failed":
            found[row.reason].append(spent[job].failed_on)
    common = sorted(found.items(), key=lambda each: (-len(each[1]), each[0]))
    return [
        {"reason": reason, "jobs": len(nodes), "nodes": sorted({node for node in nodes if node})}
        for reason, nodes in common
    ]


def _nodes(spent: Mapping[str, _TimeSpent], idle: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By node: slot seconds of these jobs, those of them that were lost, attempts that failed on it, and its
    idle slot seconds."""
    found: dict[str, dict[str, float]] = {}

    def line(node: str) -> dict[str, float]:
        return found.setdefault(node, dict.fromkeys(_NODE_FIGURES, 0.0))

    for node, seconds in idle.items():
        line(node)["idle_slot_seconds"] += seconds
    for each in spent.values():
        for node, (seconds, lost) in each.nodes.items():
            line(node)["slot_seconds"] += seconds
            line(node)["lost_slot_seconds"] += lost
        for node in each.failures:
            line(node)["failed_attempts"] += 1
    return dict(sorted(found.items()))


def _idle(uptimes: Iterable[Uptime], spent: Mapping[str, _TimeSpent]) -> dict[str, float]:
    """By node: seconds for which slots were available and nothing was placed on them."""
    busy: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for each in spent.values():
        for stay in each.stays:
            busy[stay.slot].append((stay.begin, stay.end))
    for times in busy.values():
        times.sort()
    found: dict[str, float] = defaultdict(float)
    for uptime in uptimes:
        for slot in range(uptime.slots):
            found[uptime.node] += _gaps(busy.get((uptime.node, slot), []), uptime.began, uptime.ended)
    return dict(found)


def _gaps(times: list[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds between `begin` and `end` that are in none of the times, which are sorted."""
    free, reached = 0.0, begin
    for started, ended in times:
        free += max(0.0, min(started, end) - reached)
        reached = max(reached, min(ended, end))
    return free + max(0.0, end - reached)


def _batches(connection: Connection, scope: Scope, deleted: Mapping[str, DeletedJob]) -> dict[str, list[str]]:
    """By job: the names of its batches."""
    statement = select(entries.c.job, entries.c.batch, batches.c.name).join(
        batches, batches.c.id == entries.c.batch
    )
    if scope.batch is not None:
        statement = statement.where(entries.c.batch == scope.batch)
    found: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(statement):
        found[row.job].append(f"{row.batch} ({row.name})")
    for job, gone in deleted.items():
        found[job] += [f"{id} ({name})" for id, name in gone.batches if scope.batch in (None, id)]
    return found


def _totals(
    chosen: dict[str, Any], spent: dict[str, _TimeSpent], names: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    """By name: jobs, done, failed, megapixels of done images, model and slot seconds, and those of them that
    failed and interrupted attempts have lost. A job in two batches counts in both."""
    found: dict[str, dict[str, float]] = {}
    for job, row in chosen.items():
        for name in names.get(job, []):
            line = found.setdefault(name, dict.fromkeys(_FIGURES, 0.0))
            line["jobs"] += 1
            line["done"] += row.state == "done"
            line["failed"] += row.state == "failed"
            line["model_seconds"] += row.model_seconds
            line["slot_seconds"] += spent[job].seconds
            line["lost_slot_seconds"] += spent[job].lost
            if row.state == "done":
                line["megapixels"] += row.width * row.height / 1e6
    return found


def total_rows(totals: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """Totals of batches or owners as text: name, jobs, done, failed, slot hours."""
    return [
        (
            name,
            *(f"{line[count]:.0f}" for count in ("jobs", "done", "failed")),
            f"{line['slot_seconds'] / 3600:.2f}",
        )
        for name, line in totals.items()
    ]


def headline(report: dict[str, Any]) -> str:
    """One line, as used for a mail subject or a chat message."""
    counts = ", ".join(f"{count:,} {state}" for state, count in sorted(report["jobs"].items()))
    return f"Chorale: {counts or 'no jobs'}"
