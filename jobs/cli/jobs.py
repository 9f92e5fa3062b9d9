"""Looking at jobs and steering them: list, show, cancel, pause, resume, retry, priority."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from jobs.cli.farm_options import ago, counted, farm_options, print_json, print_table, whoami
from jobs.db.commands import VERBS, apply_command, apply_to_all, set_priority
from jobs.db.leases import lock_placement
from jobs.db.queries import Filter, count_jobs, find_job, job_ids, list_jobs, show_job
from jobs.db.state_machine import STATES
from jobs.farm import Farm
from jobs.scheduler.pending_reason import pending_reason
from render.errors import BadInput


@click.command(name="list", epilog="Example: chorale list --state failed --queue overnight --limit 100")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; repeatable.")
@click.option("--queue", default=None, help="Only this queue.")
@click.option("--owner", default=None, help="Only this owner's.")
@click.option("--batch", default=None, help="Only this batch.")
@click.option("--search", default=None, help="Only prompts with these words, or words that begin so.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most jobs.")
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
) -> None:
    """List jobs, the newest first, and how many are in each state."""
    wanted = Filter(states=states, queue=queue, owner=owner, batch=batch, search=search)
    with farm.database.read() as connection:
        found, counts = list_jobs(connection, wanted, limit), count_jobs(connection, wanted)
    if as_json:
        print_json({"jobs": found, "counts": counts})
        return
    rows = [
        (row["id"], row["state"], f"{row['progress']:.0%}", row["queue"], ago(row["created"]), row["prompt"])
        for row in found
    ]
    print_table(counted(counts), ("job", "state", "done", "queue", "age", "prompt"), rows)


@click.command(epilog="Example: chorale show 3fa9")
@click.argument("job")
@farm_options
def show(farm: Farm, as_json: bool, job: str) -> None:
    """Show all that is known of a job, its history included. JOB may be the beginning of an id."""
    with farm.database.read() as connection:
        found = find_job(connection, job)
        known = show_job(connection, found) | {"waits_for": pending_reason(connection, found)}
    if as_json:
        print_json(known)
        return
    for name in ("id", "state", "reason", "waits_for", "queue", "owner", "attempts", "digest", "root"):
        click.echo(f"{name.replace('_', ' '):<9} {known[name] if known[name] is not None else '-'}")
    for name, value in known["spec"].items():
        click.echo(f"  {name}: {value}")
    rows = [(ago(event["time"]), event["old"], event["new"], event["reason"]) for event in known["events"]]
    print_table("history", ("ago", "from", "to", "reason"), rows)


def _verb_command(verb: str, text: str) -> click.Command:
    """A verb that takes job ids, or all jobs of a batch or queue that it can be done to."""

    @click.argument("ids", nargs=-1, metavar="[JOB]...")
    @click.option("--batch", default=None, help="All jobs of this batch that can be.")
    @click.option("--queue", default=None, help="All jobs of this queue that can be.")
    @farm_options
    def command(
        farm: Farm, as_json: bool, ids: tuple[str, ...], batch: str | None, queue: str | None, **options: Any
    ) -> None:
        if not ids and batch is None and queue is None and not options.get("failed"):
            raise BadInput("job", None, f"is missing; name the jobs to {verb}, or a --batch or --queue")
        if ids:
            with farm.database.write() as connection:
                lock_placement(connection)
                for job in sorted(find_job(connection, beginning) for beginning in ids):
                    apply_command(connection, verb, job, whoami())
            done = len(ids)
        else:
            states = ("failed",) if options.get("failed") else VERBS[verb][0]
            with farm.database.read() as connection:
                chosen = job_ids(connection, Filter(states=states, batch=batch, queue=queue))
            done = apply_to_all(farm.database, verb, chosen, whoami())
        if as_json:
            print_json({"verb": verb, "jobs": done, "state": VERBS[verb][1]})
        else:
            click.echo(f"{done} {'job is' if done == 1 else 'jobs are'} {VERBS[verb][1]}")

    if verb == "retry":
        command = click.option("--failed", is_flag=True, help="All failed jobs.")(command)
    decorate: Callable[[Any], click.Command] = click.command(
        name=verb, help=text, epilog=f"Example: chorale {verb} 3fa9"
    )
    return decorate(command)


cancel = _verb_command("cancel", "Cancel jobs; a group that renders one stops within a few steps.")
pause = _verb_command("pause", "Pause jobs; one that renders stops at its next checkpoint.")
resume = _verb_command("resume", "Put paused jobs back into their queue.")
retry = _verb_command("retry", "Put failed or cancelled jobs back into their queue, with fresh attempts.")


@click.command(epilog="Example: chorale priority 3fa9 90")
@click.argument("job")
@click.argument("value", type=click.IntRange(0, 100))
@farm_options
def priority(farm: Farm, as_json: bool, job: str, value: int) -> None:
    """Give a job a priority of its own, 0 to 100 (higher goes first), instead of its queue's."""
    with farm.database.write() as connection:
        found = find_job(connection, job)
        set_priority(connection, found, value)
    if as_json:
        print_json({"job": found, "priority": value})
    else:
        click.echo(f"job {found} has priority {value}")
