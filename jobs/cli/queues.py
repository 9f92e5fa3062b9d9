"""`chorale queues` and `chorale batches`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from jobs.cli.farm_options import ago, counted, farm_options, print_json, print_table
from jobs.db.queries import list_batches
from jobs.db.queues import delete_queue, list_queues, set_queue
from jobs.farm import Farm
from jobs.results import write_results
from render.errors import BadInput


@click.command(
    epilog='Examples: chorale queues; chorale queues night --window "22:00-07:00 Europe/Paris" --limit 4; '
    "chorale queues night --pause"
)
@click.argument("name", required=False)
@click.option("--priority", type=click.IntRange(0, 100), help="Of its jobs, where they have none. [50]")
@click.option("--limit", help="Most groups at once, or none.")
@click.option("--window", help="When its jobs may run: HH:MM-HH:MM ZONE, or none.")
@click.option("--share", "shares", multiple=True, help="OWNER=WEIGHT, how owners share it; repeatable.")
@click.option("--pause/--unpause", "paused", default=None, help="Stop or go on placing its jobs.")
@click.option("--delete", is_flag=True, help="Forget its rules; refused while it has jobs.")
@farm_options
def queues(farm: Farm, as_json: bool, name: str | None, delete: bool, **options: Any) -> None:
    """Show all queues, or make or change the queue NAME."""
    rules = _rules(**options)
    if name is None and (rules or delete):
        raise BadInput("queue", None, "is missing; name the queue to change")
    if name is not None:
        with farm.database.write() as connection:
            if delete:
                delete_queue(connection, name)
            else:
                set_queue(connection, name, rules)
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
        rules["group_limit"] = None if limit == "none" else _whole("limit", limit)
    if window is not None:
        rules["time_window"] = None if window == "none" else window
    if shares:
        rules["shares"] = dict(_share(text) for text in shares)
    return rules


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise BadInput(name, text, "is not none or a whole number above 0")
    return int(text)


def _share(text: str) -> tuple[str, float]:
    owner, equals, weight = text.partition("=")
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not (owner and equals and 0 < value < float("inf")):
        raise BadInput("share", text, "is not OWNER=WEIGHT with a weight above 0; use e.g. anna=2")
    return owner, value


def _row(queue: dict[str, Any]) -> tuple[Any, ...]:
    state = "paused" if queue["paused"] else "open" if queue["open"] else "closed"
    if queue["changes"] is not None and not queue["paused"]:
        state += f" until {datetime.fromtimestamp(queue['changes']).astimezone():%a %H:%M}"
    limit, window = queue["group_limit"] or "-", queue["time_window"] or "-"
    return queue["name"], queue["priority"], limit, window, state, counted(queue["jobs"])


@click.command(epilog="Examples: chorale batches --limit 5; chorale batches 8c1f00aa3b52 --results out/night")
@click.argument("batch", required=False)
@click.option("--results", type=click.Path(path_type=Path), help="Folder for BATCH's output and errors.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Most batches.")
@farm_options
def batches(farm: Farm, as_json: bool, batch: str | None, results: Path | None, limit: int) -> None:
    """Show the newest batches and the states of their jobs; or write the results of one, row by row.

    FOLDER/output.jsonl holds a line for each finished row, with its custom_id and where its image is;
    FOLDER/errors.jsonl one for each row that has none, with its state and the reason.
    """
    if (batch is None) != (results is None):
        raise BadInput("batch", batch, "goes together with --results FOLDER")
    if batch is not None and results is not None:
        written = write_results(farm, batch, results)
        if as_json:
            print_json({"batch": batch, "results": str(results), **written})
        else:
            click.echo(f"{written['output']} images and {written['errors']} rows without one: {results}")
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
            ago(batch["created"]),
            counted(batch["jobs"]),
        )
        for batch in known
    ]
    print_table("batches", ("batch", "name", "owner", "queue", "age", "jobs"), rows)
