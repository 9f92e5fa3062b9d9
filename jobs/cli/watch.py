"""`chorale watch` and `chorale wait`: until jobs are done."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from jobs.cli.farm_options import ago, counted, duration, farm_options, print_json
from jobs.db.queries import Filter, count_jobs, find_job, list_jobs
from jobs.db.state_machine import ENDED
from jobs.errors import GroupFailed, JobCancelled, JobTimedOut
from jobs.farm import Farm
from render.errors import BadInput

_LOOK_S = 0.5
_ROWS = 20


@click.command(epilog="Examples: chorale watch; chorale watch --batch 8c1f00aa3b52 --until-done")
@click.option("--batch", default=None, help="Only this batch.")
@click.option("--queue", default=None, help="Only this queue.")
@click.option("--until-done", is_flag=True, help="End when nothing waits or renders any more.")
@farm_options
def watch(farm: Farm, as_json: bool, batch: str | None, queue: str | None, until_done: bool) -> None:
    """Watch jobs live: what renders, how far it is, what waits. Ctrl-C ends the watching, not the jobs."""
    wanted, pace, console = Filter(batch=batch, queue=queue), _Pace(), Console()
    drawn = console.is_terminal and not as_json
    said = ""
    with Live(console=console, auto_refresh=False) if drawn else nullcontext() as live:
        while True:
            counts, living = _look(farm, wanted)
            for row in living:
                row["seconds_left"] = pace.seconds_left(row)
            if live is not None:
                live.update(_picture(counts, living), refresh=True)
            elif as_json:
                print_json({"counts": counts, "jobs": living})
            elif (line := _line(counts, living)) != said:
                click.echo(said := line)
            if until_done and not _unfinished(counts):
                return
            time.sleep(_LOOK_S)


@click.command(epilog="Examples: chorale wait 3fa9; chorale wait --batch 8c1f00aa3b52 --timeout 3600")
@click.argument("job", required=False)
@click.option("--batch", default=None, help="All jobs of this batch.")
@click.option("--timeout", type=float, default=None, help="Seconds after which to give up (exit 5).")
@farm_options
def wait(farm: Farm, as_json: bool, job: str | None, batch: str | None, timeout: float | None) -> None:
    """Wait until a job or a batch is done.

    Exit codes: 0 all done, 3 some failed, 4 some cancelled, 5 timed out.
    """
    if (job is None) == (batch is None):
        raise BadInput("job", job, "or --batch is wanted, and only one of them")
    with farm.database.read() as connection:
        wanted = Filter(batch=batch, job=None if job is None else find_job(connection, job))
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        with farm.database.read() as connection:
            counts = count_jobs(connection, wanted)
        if not _unfinished(counts):
            break
        if deadline is not None and time.monotonic() > deadline:
            raise JobTimedOut(f"timeout: after {timeout:g} s there are still {counted(_living(counts))}")
        time.sleep(_LOOK_S)
    if counts["failed"]:
        raise GroupFailed(f"{counted(counts)}; chorale list --state failed shows why")
    if counts["cancelled"]:
        raise JobCancelled(counted(counts))
    if as_json:
        print_json({"counts": counts})
    else:
        click.echo(counted(counts))


def _look(farm: Farm, wanted: Filter) -> tuple[dict[str, int], list[dict[str, Any]]]:
    with farm.database.read() as connection:
        living = Filter(states=("publishing", "rendering", "placing"), batch=wanted.batch, queue=wanted.queue)
        return count_jobs(connection, wanted), list_jobs(connection, living, _ROWS)


def _living(counts: dict[str, int]) -> dict[str, int]:
    return {state: count for state, count in counts.items() if state not in ENDED}


def _unfinished(counts: dict[str, int]) -> bool:
    return any(_living(counts).values())


class _Pace:
    """How fast jobs get on, as far as has been watched."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], tuple[float, float]] = {}

    def seconds_left(self, row: dict[str, Any]) -> float | None:
        """Estimated; None while nothing has moved yet."""
        at, progress = time.monotonic(), row["progress"]
        began, had = self._first.setdefault((row["id"], row["fence"]), (at, progress))
        return None if progress <= had else (1 - progress) * (at - began) / (progress - had)


def _line(counts: dict[str, int], living: list[dict[str, Any]]) -> str:
    """Where there is no terminal: a line for every tenth of a job."""
    jobs = ", ".join(f"{row['id']} {row['state']} {int(row['progress'] * 10) * 10} %" for row in living)
    return counted(counts) + (f": {jobs}" if jobs else "")


def _picture(counts: dict[str, int], living: list[dict[str, Any]]) -> Group:
    table = Table(box=None, pad_edge=False)
    for name in ("job", "state", "progress", "", "left", "age", "prompt"):
        table.add_column(name)
    for row in living:
        bar = ProgressBar(total=1.0, completed=row["progress"], width=24)
        left = "" if row["seconds_left"] is None else duration(row["seconds_left"])
        share, age, prompt = f"{row['progress']:.0%}", ago(row["created"]), row["prompt"][:60]
        table.add_row(row["id"], row["state"], bar, share, left, age, prompt)
    return Group(counted(counts), table)
