"""`chorale queues` and `chorale batches`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from jobs.cli.farm_options import farm_options, this_user
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.db.audit import record
from jobs.db.queries import list_batches
from jobs.db.queues import check_exists, delete_queue, list_queues, set_queue
from jobs.db.time_window import TimeWindow, has_zone
from jobs.farm import Farm
from jobs.formatting import age, counts_by_state, plural
from jobs.queue_rules import parse_limit, parse_shares
from jobs.results import write_results


@click.command(
    epilog=examples(
        "chorale queues",
        'chorale queues night --window "mon-fri 22:00-07:00 Europe/Paris" --limit 4',
        "chorale queues night --pause",
    )
)
@click.argument("name", required=False)
@click.option("--priority", type=click.IntRange(0, 100), help="Default priority of its jobs. [50]")
@click.option("--limit", help="Maximum number of groups at once, or none.")
@click.option(
    "--window",
    help="Time window in which its jobs may run: [DAYS] HH:MM-HH:MM [ZONE], or none. [this machine's zone]",
)
@click.option(
    "--share", "shares", multiple=True, help="OWNER=WEIGHT: this owner's share of the queue; may repeat."
)
@click.option("--pause/--unpause", "paused", default=None, help="Stop or resume starting its jobs.")
@click.option("--delete", is_flag=True, help="Delete the queue; refused while it has unfinished jobs.")
@farm_options
def queues(farm: Farm, as_json: bool, name: str | None, delete: bool, **options: Any) -> None:
    """List all queues, or create or change the queue NAME."""
    rules = _rules(**options)
    if name is None and (rules or delete):
        raise click.UsageError("Name the queue to change")
    if name is not None:
        with farm.database.write() as connection:
            if delete:
                delete_queue(connection, name)
                record(connection, this_user(), "delete queue", f"queue {name}")
            else:
                window = rules.get("time_window")
                if window is not None and not has_zone(window):
                    zone = f"{TimeWindow.parse(window)}: no zone is given, so it is this machine's"
                    print_line(f"chorale: time window {zone}", error=True)
                if set(rules) <= {"paused"}:
                    # A misspelled name must not make a queue: one is made by giving it rules.
                    check_exists(connection, None, name)
                stored = set_queue(connection, name, rules)
                if stored:
                    record(connection, this_user(), "set queue", f"queue {name}", **stored)
    with farm.database.read() as connection:
        known = list_queues(connection)
    if as_json:
        print_json({"queues": known})
        return
    columns = ("queue", "priority", "limit", "window", "state", "jobs")
    print_table("queues", columns, [_row(queue) for queue in known])


def _rules(
    priority: int | None, limit: str | None, window: str | None, shares: tuple[str, ...], paused: bool | None
) -> dict[str, Any]:
    rules: dict[str, Any] = {"priority": priority, "paused": paused}
    rules = {name: value for name, value in rules.items() if value is not None}
    if limit is not None:
        rules["group_limit"] = None if limit == "none" else parse_limit(limit)
    if window is not None:
        rules["time_window"] = None if window == "none" else window
    if shares:
        rules["shares"] = parse_shares(shares)
    return rules


def _row(queue: dict[str, Any]) -> tuple[Any, ...]:
    state = "paused" if queue["paused"] else "open" if queue["open"] else "closed"
    if queue["changes"] is not None and not queue["paused"]:
        state += f" until {datetime.fromtimestamp(queue['changes']).astimezone():%a %H:%M}"
    limit, window = queue["group_limit"] or "-", queue["time_window"] or "-"
    return queue["name"], queue["priority"], limit, window, state, counts_by_state(queue["jobs"])


@click.command(
    epilog=examples("chorale batches --limit 5", "chorale batches 8c1f00aa3b52 --results out/night")
)
@click.argument("batch", required=False)
@click.option(
    "--results", type=click.Path(path_type=Path), help="Write the results of BATCH into this folder."
)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Maximum number."
)
@farm_options
def batches(farm: Farm, as_json: bool, batch: str | None, results: Path | None, limit: int) -> None:
    """List the newest batches, or write the results of one into a folder.

    With --results, output.jsonl gets one line per finished row, with its custom_id and the URL of its
    manifest, and errors.jsonl one line per other row, with its state and the reason.
    """
    if (batch is None) != (results is None):
        raise click.UsageError("Give a batch and --results FOLDER together")
    if batch is not None and results is not None:
        written = write_results(farm, batch, results)
        if as_json:
            print_json({"batch": batch, "results": str(results), **written})
        else:
            print_line(
                f"{results}: {plural(written['output'], 'image')}, "
                f"{plural(written['errors'], 'row')} without an image"
            )
        return
    with farm.database.read() as connection:
        known = list_batches(connection, limit)
    if as_json:
        print_json({"batches": known})
        return
    rows = [
        (
            batch["id"],
            batch["name"],
            batch["owner"],
            batch["queue"],
            age(batch["created"]),
            counts_by_state(batch["jobs"]),
        )
        for batch in known
    ]
    print_table("batches", ("batch", "name", "owner", "queue", "age", "jobs"), rows)
