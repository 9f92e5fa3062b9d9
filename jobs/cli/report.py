"""`chorale report`, `chorale estimate`: the morning after, and whether tonight is long enough."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from jobs.cli.farm_options import farm_options, print_json, print_table
from jobs.estimate import estimate
from jobs.farm import Farm
from jobs.report import Scope, as_html, headline, make_report, total_rows
from render.errors import BadInput

_UNITS = {"h": "hours", "d": "days", "m": "minutes"}


@click.command(
    epilog="Examples: chorale report --since 12h; chorale report --batch 8c1f00aa3b52 --html night.html"
)
@click.option("--queue", default=None, help="Only this queue.")
@click.option("--batch", default=None, help="Only this batch.")
@click.option(
    "--since", default="24h", show_default=True, help="A length (90m, 12h, 7d), or a date and time."
)
@click.option("--html", "page", type=click.Path(path_type=Path), help="Also write a page.")
@farm_options
def report(
    farm: Farm, as_json: bool, queue: str | None, batch: str | None, since: str, page: Path | None
) -> None:
    """Tell what was done, what it took, what failed and where, and what is missing."""
    scope = Scope(queue=queue, batch=batch, since=_moment(since))
    with farm.database.read() as connection:
        made = make_report(connection, scope)
    if page is not None:
        page.write_text(as_html(made), encoding="utf-8")
    if as_json:
        print_json(made)
        return
    click.echo(headline(made))
    hours = {name: made[name] / 3600 for name in ("model_seconds", "slot_seconds", "lost_slot_seconds")}
    click.echo(
        f"model {hours['model_seconds']:.2f} h, slots {hours['slot_seconds']:.2f} h "
        f"({hours['lost_slot_seconds']:.2f} h lost to failed and interrupted attempts), "
        f"idle {made['idle_slot_seconds'] / 3600:.2f} h, {made['retries']} retries"
    )
    for title in ("batches", "owners"):
        print_table(title, ("name", "jobs", "done", "failed", "slot hours"), total_rows(made[title]))
    if made["failed"]:
        failed = [(row["job"], row["node"] or "-", row["reason"], row["prompt"]) for row in made["failed"]]
        print_table("failed", ("job", "node", "reason", "prompt"), failed)
    slow = [(row["job"], f"{row['slot_seconds']:.0f} s", row["prompt"][:60]) for row in made["slowest"]]
    print_table("slowest", ("job", "slot seconds", "prompt"), slow)


@click.command(name="estimate", epilog="Example: chorale estimate --json")
@farm_options
def estimate_command(farm: Farm, as_json: bool) -> None:
    """Say when each queue will be empty, by measured rates, and whether that fits its window."""
    with farm.database.read() as connection:
        lines = estimate(connection)
    if as_json:
        print_json({"queues": lines})
        return
    rows = []
    for line in lines:
        hours, ends, closes = f"{line['slot_hours']:.2f}", _clock(line["ends"]), _clock(line["closes"])
        rows.append((line["queue"], line["jobs"], hours, ends, closes, _verdict(line)))
    print_table("estimate", ("queue", "jobs", "slot hours", "empty at", "closes", "fits"), rows)


def _verdict(line: dict[str, Any]) -> str:
    if line["unknown"]:
        return f"unknown: no rate yet for {line['unknown']} jobs"
    late = f", {line['deadlines_missed']} deadlines missed" if line["deadlines_missed"] else ""
    return ("yes" if line["fits"] else "no") + late


def _clock(moment: float | None) -> str:
    return "-" if moment is None else f"{datetime.fromtimestamp(moment).astimezone():%a %H:%M}"


def _moment(text: str) -> float:
    """`12h` ago, or an ISO date and time, in seconds since the epoch."""
    try:
        if text[-1:] in _UNITS:
            return (datetime.now() - timedelta(**{_UNITS[text[-1]]: float(text[:-1])})).timestamp()
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError) as exc:
        raise BadInput("since", text, "is no length or date; use e.g. 12h, 7d or 2026-11-21T22:00") from exc
