"""What a webhook is told, and how it is written for programs, for Slack and for Microsoft Teams."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from sqlalchemy import ColumnElement, Connection, func, select

from infra.printable import printable
from jobs.db.state_machine import ENDED
from jobs.db.tables import batches, entries, jobs
from jobs.formatting import plural
from jobs.webhooks.due import ended_between

_BATCHES, _REASONS = 10, 5
_LONGEST = 200


def make_message(
    connection: Connection,
    row: Any,
    payload: Mapping[str, Any],
    board: str,
    thumbnail: Callable[[str], str | None],
) -> dict[str, Any]:
    """The message about what a follow-up found, as JSON types; times in ISO 8601.

    `board` is the board's address, or empty; `thumbnail` gives the address of a job's thumbnail, or None.
    """
    chosen = _chosen(row, payload)
    counts = _by(connection, jobs.c.state, chosen)
    found = {state: counts.get(state, 0) for state in ENDED}
    told = _batches(connection, chosen, payload["batches"], board)
    where = f"/batches/{told[0]['batch']}" if len(told) == 1 else ""
    if not where and row.queue:
        where = f"/jobs?queue={quote(row.queue, safe='')}"
    message = {
        "title": _title(found, told, row.queue),
        "jobs": found,
        "failures": _failures(connection, chosen),
        "batches": told[:_BATCHES],
        "more_batches": max(0, len(told) - _BATCHES),
        "since": _iso(payload["since"]),
        "until": _iso(payload["until"]),
        "url": f"{board}{where or '/'}" if board else None,
    }
    first = first_image(connection, row, payload)
    return message | {"thumbnail": thumbnail(first) if first is not None else None}


def first_image(connection: Connection, row: Any, payload: Mapping[str, Any]) -> str | None:
    """The finished job whose image a message shows; None if it is about none."""
    done = select(jobs.c.id).where(_chosen(row, payload), jobs.c.state == "done")
    found: str | None = connection.execute(done.order_by(jobs.c.ended).limit(1)).scalar()
    return found


def make_test_message(board: str) -> dict[str, Any]:
    """What somebody is told who wants to see whether messages arrive: `jobs` and all else are empty."""
    moment = _iso(time.time())
    return {
        "title": "Chorale: a test message",
        "jobs": dict.fromkeys(ENDED, 0),
        "failures": [],
        "batches": [],
        "more_batches": 0,
        "since": moment,
        "until": moment,
        "url": f"{board}/" if board else None,
        "thumbnail": None,
        "test": True,
    }


def body_of(kind: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message in the form that a receiver of this kind takes."""
    if kind == "slack":
        return _slack(message)
    if kind == "teams":
        return _teams(message)
    kind = "test" if message.get("test") else "jobs.ended"
    return {"type": kind, "timestamp": message["until"], "data": dict(message)}


def _chosen(row: Any, payload: Mapping[str, Any]) -> ColumnElement[bool]:
    if payload["batches"]:
        return jobs.c.id.in_(select(entries.c.job).where(entries.c.batch.in_(payload["batches"])))
    return ended_between(row, payload["since"], payload["until"])


def _by(connection: Connection, column: Any, chosen: ColumnElement[bool]) -> dict[str, int]:
    counted = select(column.label("name"), func.count().label("jobs")).where(chosen).group_by(column)
    return {row.name: row.jobs for row in connection.execute(counted)}


def _failures(connection: Connection, chosen: ColumnElement[bool]) -> list[dict[str, Any]]:
    """The commonest reasons, with how many jobs failed for each."""
    counts = _by(connection, jobs.c.reason, chosen & (jobs.c.state == "failed"))
    common = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return [{"reason": printable(reason)[:_LONGEST], "jobs": count} for reason, count in common[:_REASONS]]


def _batches(
    connection: Connection, chosen: ColumnElement[bool], ended: Sequence[str], board: str
) -> list[dict[str, Any]]:
    """The batches of these jobs, newest first; only those that have ended where it is about batches."""
    counted = (
        select(batches.c.id, batches.c.name, batches.c.created, jobs.c.state, func.count().label("jobs"))
        .join(entries, entries.c.batch == batches.c.id)
        .join(jobs, jobs.c.id == entries.c.job)
        .where(chosen)
        .group_by(batches.c.id, batches.c.name, batches.c.created, jobs.c.state)
        .order_by(batches.c.created.desc(), batches.c.id)
    )
    if ended:
        counted = counted.where(batches.c.id.in_(ended))
    found: dict[str, dict[str, Any]] = {}
    for row in connection.execute(counted):
        url = f"{board}/batches/{row.id}" if board else None
        named = {"batch": row.id, "name": printable(row.name)[:_LONGEST], "url": url}
        found.setdefault(row.id, named | dict.fromkeys(ENDED, 0))[row.state] = row.jobs
    return list(found.values())


def _title(counts: Mapping[str, int], told: Sequence[Mapping[str, Any]], queue: str | None) -> str:
    parts = [plural(counts["done"], "image") + " done"]
    parts += [f"{counts[state]:,} {state}" for state in ("failed", "cancelled") if counts[state]]
    where = f" in queue {queue}" if queue else ""
    if len(told) == 1:
        where = f" in batch {told[0]['batch']} ({told[0]['name']})"
    elif told and not queue:
        where = f" in {plural(len(told), 'batch', 'batches')}"
    return ", ".join(parts) + where


def _slack(message: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks of Slack's Block Kit; `text` is what notifications show."""
    lines = [f"*{_escaped(message['title'])}*", *(f"• {_escaped(line)}" for line in message_lines(message))]
    section: dict[str, Any] = {"type": "section", "text": {"type": "mrkdwn", "text": "\n".join(lines)[:2900]}}
    if message["thumbnail"]:
        section["accessory"] = {
            "type": "image",
            "image_url": message["thumbnail"],
            "alt_text": "the first image",
        }
    blocks: list[dict[str, Any]] = [section]
    if message["url"]:
        button = {"type": "button", "text": {"type": "plain_text", "text": "Open"}, "url": message["url"]}
        blocks.append({"type": "actions", "elements": [button]})
    return {"text": _escaped(message["title"]), "blocks": blocks}


def _escaped(text: str) -> str:
    """Text for Slack, in which a name of a batch is no link and mentions nobody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _teams(message: Mapping[str, Any]) -> dict[str, Any]:
    """An Adaptive Card, as Teams' workflows take it."""
    body: list[dict[str, Any]] = [
        {"type": "TextBlock", "text": message["title"], "weight": "bolder", "size": "medium", "wrap": True}
    ]
    body += [{"type": "TextBlock", "text": line, "wrap": True} for line in message_lines(message)]
    if message["thumbnail"]:
        body.append({"type": "Image", "url": message["thumbnail"], "altText": "the first image"})
    card: dict[str, Any] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
    }
    if message["url"]:
        card["actions"] = [{"type": "Action.OpenUrl", "title": "Open", "url": message["url"]}]
    attachment = {
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": None,
        "content": card,
    }
    return {"type": "message", "attachments": [attachment]}


def message_lines(message: Mapping[str, Any]) -> list[str]:
    """Failures by reason, then the batches, where there is more than one."""
    lines = [f"{each['jobs']:,} failed: {each['reason']}" for each in message["failures"]]
    for each in message["batches"] if len(message["batches"]) > 1 else []:
        counts = ", ".join(f"{each[state]:,} {state}" for state in ENDED if each[state])
        lines.append(f"{each['batch']} ({each['name']}): {counts}")
    if message["more_batches"]:
        lines.append(f"and {plural(message['more_batches'], 'batch', 'batches')} more")
    return lines


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
