"""`chorale list`, `show`, `cancel`, `pause`, `resume`, `retry` and `priority`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from jobs.cli.farm_options import farm_options, this_user, whoami
from jobs.cli.help import examples
from jobs.cli.job_columns import COLUMNS, parse_columns, table_of
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.db.audit import record
from jobs.db.board_queries import attempts_of
from jobs.db.commands import VERBS, apply_command, apply_to_all, set_priority
from jobs.db.job_order import NEWEST, SORTS, Order
from jobs.db.leases import lock_placement
from jobs.db.queries import Filter, count_jobs, find_job, job_ids, list_jobs, show_job, with_names
from jobs.db.queues import check_exists
from jobs.db.state_machine import STATES
from jobs.farm import Farm
from jobs.formatting import age, counts_by_state, plural
from jobs.scheduler.capacity import find_impossible_jobs
from jobs.scheduler.pending_reason import pending_reason
from jobs.scheduler.waiting import what_jobs_wait_for
from jobs.tags import tags_text

_PAST = {"cancel": "Cancelled", "pause": "Paused", "resume": "Resumed", "retry": "Queued"}
_SHOWN = {
    "id": "id",
    "state": "state",
    "reason": "reason",
    "waits_for": "waits for",
    "queue": "queue",
    "owner": "owner",
    "attempts": "attempts",
    "digest": "digest",
    "root": "root",
}


@click.command(
    name="list",
    epilog=examples(
        "chorale list",
        "chorale list --state failed --queue overnight --limit 100",
        "chorale list --columns custom_id,state,took,node --sort -took",
    ),
)
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="State; may repeat.")
@click.option("--queue", default=None, help="Only jobs of this queue.")
@click.option("--owner", default=None, help="Only jobs of this owner.")
@click.option("--batch", default=None, help="Only jobs of this batch.")
@click.option("--search", default=None, help="Only prompts with these words or beginnings of words.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Maximum number of jobs."
)
@click.option("--columns", metavar="NAMES", help=f"Columns to show, in this order: {','.join(COLUMNS)}.")
@click.option(
    "--sort",
    default=str(NEWEST),
    metavar="NAME",
    help=f"{', '.join(SORTS)}; -NAME: the largest first. [{NEWEST}]",
)
@farm_options
def list_command(
    farm: Farm,
    as_json: bool,
    states: tuple[str, ...],
    queue: str | None,
    owner: str | None,
    batch: str | None,
    search: str | None,
    limit: int,
    columns: str | None,
    sort: str,
) -> None:
    """List jobs, newest first unless told otherwise, and count them by state."""
    wanted = Filter(states=states, queue=queue, owner=owner, batch=batch, search=search)
    shown, order = parse_columns(columns), Order.parse(sort)
    with farm.database.read() as connection:
        check_exists(connection, batch, queue)
        found, counts = list_jobs(connection, wanted, limit, order), count_jobs(connection, wanted)
        found, ids = with_names(connection, found, batch), [row["id"] for row in found]
        impossible, waiting = find_impossible_jobs(connection, ids), what_jobs_wait_for(connection, ids)
    found = [
        row | {"cannot_run": impossible.get(row["id"]), "waits_for": waiting.get(row["id"])} for row in found
    ]
    print_jobs(found, counts, as_json, shown)


def print_jobs(
    found: list[dict[str, Any]],
    counts: dict[str, int] | None,
    as_json: bool,
    columns: tuple[str, ...] | None = None,
) -> None:
    """Print a list of jobs under their number by state, which is None where nobody has counted."""
    if as_json:
        print_json({"jobs": found, "counts": counts})
        return
    title = "jobs" if counts is None else counts_by_state(counts)
    print_table(title, *table_of(found, columns))


@click.command(epilog=examples("chorale show 3fa9"))
@click.argument("job")
@farm_options
def show(farm: Farm, as_json: bool, job: str) -> None:
    """Show a job: its state, spec and history. JOB is an id or the beginning of one."""
    with farm.database.read() as connection:
        found = find_job(connection, job)
        known = show_job(connection, found) | {
            "attempts_made": attempts_of(connection, found),
            "waits_for": pending_reason(connection, found),
            "cannot_run": find_impossible_jobs(connection, [found]).get(found),
        }
    print_job(known, as_json)


def print_job(known: dict[str, Any], as_json: bool) -> None:
    """Print a job with its spec and its history."""
    if as_json:
        print_json(known)
        return
    if known["cannot_run"]:
        print_line(known["cannot_run"])
    for name, label in _SHOWN.items():
        print_line(f"{label:<9} {known[name] if known[name] is not None else '-'}")
    if known["require_tag"]:
        print_line(f"{'needs':<9} {tags_text(known['require_tag'])}")
    for each in known["after"]:
        how = "has ended" if each["any"] else "is done"
        print_line(f"{'after':<9} {each['kind']} {each['id']} {how}{' (it is)' if each['met'] else ''}")
    for name, value in known["spec"].items():
        print_line(f"  {name}: {'-' if value in (None, '', []) else value}")
    rows = [(age(event["time"]), event["old"], event["new"], event["reason"]) for event in known["events"]]
    print_table("history", ("age", "from", "to", "reason"), rows)
    sizes = [
        (age(size["since"]), str(attempt["fence"]), str(size["ranks"]))
        for attempt in known["attempts_made"]
        for size in attempt.get("ranks", ())
    ]
    if sizes:
        print_table("ranks", ("age", "attempt", "ranks"), sizes)


def _verb_command(verb: str, text: str) -> click.Command:
    """A command that changes the jobs of the given ids, or all jobs of a batch or queue that allow it."""

    @click.argument("ids", nargs=-1, metavar="[JOB]...")
    @click.option("--batch", default=None, help=f"All jobs of this batch that are {_or(VERBS[verb][0])}.")
    @click.option("--queue", default=None, help=f"All jobs of this queue that are {_or(VERBS[verb][0])}.")
    @farm_options
    def command(
        farm: Farm, as_json: bool, ids: tuple[str, ...], batch: str | None, queue: str | None, **options: Any
    ) -> None:
        many = batch is not None or queue is not None or bool(options.get("failed"))
        if bool(ids) == many:
            either = ", not both" if ids else ""
            raise click.UsageError(f"Name the jobs to {verb}, or give --batch or --queue{either}")
        if ids:
            with farm.database.write() as connection:
                lock_placement(connection)
                for job in sorted(find_job(connection, beginning) for beginning in ids):
                    apply_command(connection, verb, job, whoami())
                    record(connection, this_user(), verb, f"job {job}")
            done = len(ids)
        else:
            states = ("failed",) if options.get("failed") else VERBS[verb][0]
            with farm.database.read() as connection:
                check_exists(connection, batch, queue)
                chosen = job_ids(connection, Filter(states=states, batch=batch, queue=queue))
            done = apply_to_all(farm.database, verb, chosen, whoami())
            named = {"batch": batch, "queue": queue}
            target = ", ".join(f"{name} {value}" for name, value in named.items() if value) or "the farm"
            with farm.database.write() as connection:
                record(connection, this_user(), verb, target, jobs=done)
        print_done(verb, done, as_json)

    if verb == "retry":
        command = click.option("--failed", is_flag=True, help="All failed jobs.")(command)
    decorate: Callable[[Any], click.Command] = click.command(
        name=verb, help=text, epilog=examples(f"chorale {verb} 3fa9", f"chorale {verb} --batch 8c1f00aa3b52")
    )
    return decorate(command)


def print_done(verb: str, done: int, as_json: bool) -> None:
    """Print what a command has done to so many jobs."""
    if as_json:
        print_json({"verb": verb, "jobs": done, "state": VERBS[verb][1]})
    else:
        print_line(f"{_PAST[verb]} {plural(done, 'job')}")


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


cancel = _verb_command("cancel", "Cancel jobs. A group that renders one stops within a few steps.")
pause = _verb_command("pause", "Pause jobs. A rendering job stops at its next checkpoint.")
resume = _verb_command("resume", "Put paused jobs back into their queue.")
retry = _verb_command("retry", "Queue failed or cancelled jobs again, with all their attempts.")


@click.command(epilog=examples("chorale priority 3fa9 90"))
@click.argument("job")
@click.argument("value", type=click.IntRange(0, 100))
@farm_options
def priority(farm: Farm, as_json: bool, job: str, value: int) -> None:
    """Give a job its own priority, 0 to 100, instead of its queue's. Higher priorities start first."""
    with farm.database.write() as connection:
        found = find_job(connection, job)
        set_priority(connection, found, value)
        record(connection, this_user(), "priority", f"job {found}", priority=value)
    if as_json:
        print_json({"job": found, "priority": value})
    else:
        print_line(f"Job {found} has priority {value}")
