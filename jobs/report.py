"""Reports: jobs done, time spent, failures and their nodes, jobs still missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from infra.database import now
from jobs.db.slot_time import Stay, slot_seconds
from jobs.db.state_machine import ENDED
from jobs.db.tables import attempts, batches, entries, jobs, members
from jobs.db.uptimes import Uptime, uptimes_between
from jobs.page_templates import environment

_SLOWEST_JOBS = 5
_FIGURES = ("jobs", "done", "failed", "megapixels", "model_seconds", "slot_seconds", "lost_slot_seconds")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Selects the jobs of a report; `since` is in seconds since the epoch."""

    queue: str | None = None
    batch: str | None = None
    since: float = 0.0


def make_report(connection: Connection, scope: Scope) -> dict[str, Any]:
    """The report as JSON types; times in seconds."""
    moment: float = connection.execute(select(now())).scalar_one()
    chosen = _jobs(connection, scope)
    spent = _spent(connection, scope.since, moment)
    mine = {job: spent.get(job, _TimeSpent()) for job in chosen}
    counts: dict[str, int] = defaultdict(int)
    for row in chosen.values():
        counts[row.state] += 1
    first = min((row.created for row in chosen.values()), default=moment)
    since = scope.since or first
    done = [row for row in chosen.values() if row.state == "done"]
    slowest = sorted(done, key=lambda row: mine[row.id].seconds, reverse=True)[:_SLOWEST_JOBS]
    return {
        "at": moment,
        "since": since,
        "jobs": dict(counts),
        "missing": [row.id for row in chosen.values() if row.state not in ENDED],
        "failed": [
            {"job": row.id, "prompt": row.prompt, "reason": row.reason, "node": mine[row.id].failed_on}
            for row in chosen.values()
            if row.state == "failed"
        ],
        "model_seconds": sum(row.model_seconds for row in chosen.values()),
        "slot_seconds": sum(each.seconds for each in mine.values()),
        "lost_slot_seconds": sum(each.lost for each in mine.values()),
        "idle_slot_seconds": _idle(uptimes_between(connection, since, moment, max(since, first)), spent),
        "retries": sum(max(0, each.attempts - 1) for each in mine.values()),
        "owners": _totals(chosen, mine, {row.id: [row.owner] for row in chosen.values()}),
        "batches": _totals(chosen, mine, _batches(connection, scope)),
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
    stays: list[Stay] = field(default_factory=list)
    """All of them, slot by slot."""


def _jobs(connection: Connection, scope: Scope) -> dict[str, Any]:
    """The jobs that have not ended, or have ended in the period."""
    prompt = jobs.c.spec["prompt"].as_string().label("prompt")
    sides = [jobs.c.spec[name].as_integer().label(name) for name in ("width", "height")]
    columns = [jobs.c[name] for name in ("id", "state", "reason", "owner", "created", "model_seconds")]
    recent = jobs.c.ended.is_(None) | (jobs.c.ended >= scope.since) | jobs.c.state.not_in(ENDED)
    statement = select(*columns, *sides, prompt).where(recent).order_by(jobs.c.created, jobs.c.id)
    if scope.queue is not None:
        statement = statement.where(jobs.c.queue == scope.queue)
    if scope.batch is not None:
        statement = statement.where(
            jobs.c.id.in_(select(entries.c.job).where(entries.c.batch == scope.batch))
        )
    return {row.id: row for row in connection.execute(statement)}


def _spent(connection: Connection, since: float, moment: float) -> dict[str, _TimeSpent]:
    statement = (
        select(attempts, members.c.node, members.c.slots)
        .join(members, members.c.attempt == attempts.c.id)
        .where((attempts.c.ended.is_(None)) | (attempts.c.ended >= since))
        .order_by(attempts.c.created)
    )
    rows = list(connection.execute(statement))
    found: dict[str, _TimeSpent] = defaultdict(_TimeSpent)
    for row in rows:
        begin, end = max(since, row.created), moment if row.ended is None else row.ended
        found[row.job].stays += [
            Stay(attempt=row.id, slot=(row.node, slot), begin=min(begin, end), end=end) for slot in row.slots
        ]
    seconds = slot_seconds(stay for each in found.values() for stay in each.stays)
    for row in {row.id: row for row in rows}.values():
        each, spent = found[row.job], seconds.get(row.id, 0.0)
        each.seconds += spent
        each.attempts = max(each.attempts, row.fence)
        if row.ended is not None and row.reason != "done":
            each.lost += spent
            each.failed_on = row.failed_node or each.failed_on
    return found


def _idle(uptimes: Iterable[Uptime], spent: Mapping[str, _TimeSpent]) -> float:
    """Seconds for which slots were available and nothing was placed on them, summed over the slots."""
    busy: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for each in spent.values():
        for stay in each.stays:
            busy[stay.slot].append((stay.begin, stay.end))
    for times in busy.values():
        times.sort()
    return sum(
        _gaps(busy.get((uptime.node, slot), []), uptime.began, uptime.ended)
        for uptime in uptimes
        for slot in range(uptime.slots)
    )


def _gaps(times: list[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds between `begin` and `end` that are in none of the times, which are sorted."""
    free, reached = 0.0, begin
    for started, ended in times:
        free += max(0.0, min(started, end) - reached)
        reached = max(reached, min(ended, end))
    return free + max(0.0, end - reached)


def _batches(connection: Connection, scope: Scope) -> dict[str, list[str]]:
    """By job: the names of its batches."""
    statement = select(entries.c.job, entries.c.batch, batches.c.name).join(
        batches, batches.c.id == entries.c.batch
    )
    if scope.batch is not None:
        statement = statement.where(entries.c.batch == scope.batch)
    found: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(statement):
        found[row.job].append(f"{row.batch} ({row.name})")
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


def as_html(report: dict[str, Any]) -> str:
    """A complete HTML page, without external resources, so that mail programs show it."""
    template = environment().get_template("report.html")
    return template.render(headline=headline(report), tables=_tables(report))


def _tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables of the page: title, head and rows of text."""
    figures = [
        ("model hours", report["model_seconds"]),
        ("slot hours", report["slot_seconds"]),
        ("of them lost", report["lost_slot_seconds"]),
        ("idle slot hours", report["idle_slot_seconds"]),
    ]
    rows = [(name, f"{seconds / 3600:.2f}") for name, seconds in figures]
    tables: list[dict[str, Any]] = [{"title": "", "head": ("figure", "value"), "rows": rows}]
    for title in ("batches", "owners"):
        head = ("name", "jobs", "done", "failed", "slot hours")
        tables.append({"title": title, "head": head, "rows": total_rows(report[title])})
    if report["failed"]:
        failed = [(row["job"], row["prompt"], row["reason"], row["node"] or "-") for row in report["failed"]]
        tables.append({"title": "failed", "head": ("job", "prompt", "reason", "node"), "rows": failed})
    if report["slowest"]:
        slow = [(row["job"], row["prompt"], f"{row['slot_seconds']:.0f} s") for row in report["slowest"]]
        tables.append({"title": "slowest", "head": ("job", "prompt", "slot seconds"), "rows": slow})
    return tables
