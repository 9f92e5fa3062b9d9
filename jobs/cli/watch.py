"""`chorale watch` and `chorale wait`: follow jobs until they are done."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar

from jobs.cli.farm_options import farm_options
from jobs.cli.help import examples
from jobs.cli.terminal import new_table, plain, print_json, print_line
from jobs.db.queries import Filter, count_jobs, find_job, list_jobs
from jobs.db.queues import check_exists
from jobs.db.state_machine import ENDED
from jobs.errors import JobCancelled, JobFailed, JobTimedOut
from jobs.farm import Farm
from jobs.formatting import age, counts_by_state, duration, percent

_POLL_S = 0.5
_ROWS = 20


@click.command(epilog=examples("chorale watch", "chorale watch --batch 8c1f00aa3b52 --until-done"))
@click.option("--batch", default=None, help="Only jobs of this batch.")
@click.option("--queue", default=None, help="Only jobs of this queue.")
@click.option("--until-done", is_flag=True, help="Exit when no job is queued or rendering any more.")
@farm_options
def watch(farm: Farm, as_json: bool, batch: str | None, queue: str | None, until_done: bool) -> None:
    """Show running jobs and their progress, live. Ctrl-C stops the display, not the jobs."""
    wanted, rates, console = Filter(batch=batch, queue=queue), _ProgressRates(), Console()
    with farm.database.read() as connection:
        check_exists(connection, batch, queue)
    interactive = console.is_terminal and not as_json
    last = ""
    with Live(console=console, auto_refresh=False) if interactive else nullcontext() as live:
        while True:
            counts, running = _read(farm, wanted)
            for row in running:
                row["seconds_left"] = rates.seconds_left(row)
            if live is not None:
                live.update(_display(counts, running), refresh=True)
            elif as_json:
                print_json({"counts": counts, "jobs": running})
            elif (line := _line(counts, running)) != last:
                print_line(line)
                last = line
            if until_done and not _unfinished(counts):
                return
            time.sleep(_POLL_S)


@click.command(epilog=examples("chorale wait 3fa9", "chorale wait --batch 8c1f00aa3b52 --timeout 3600"))
@click.argument("job", required=False)
@click.option("--batch", default=None, help="Wait for all jobs of this batch.")
@click.option("--timeout", type=float, default=None, help="Give up after this many seconds (exit code 5).")
@farm_options
def wait(farm: Farm, as_json: bool, job: str | None, batch: str | None, timeout: float | None) -> None:
    """Wait until a job or all jobs of a batch have ended.

    Exit codes: 0 all done, 3 some failed, 4 some cancelled, 5 timed out.
    """
    if (job is None) == (batch is None):
        raise click.UsageError("Give a job or --batch" + (", not both" if job is not None else ""))
    with farm.database.read() as connection:
        check_exists(connection, batch, None)
        wanted = Filter(batch=batch, job=None if job is None else find_job(connection, job))
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        with farm.database.read() as connection:
            counts = count_jobs(connection, wanted)
        if not _unfinished(counts):
            break
        if deadline is not None and time.monotonic() > deadline:
            raise JobTimedOut(f"timeout of {timeout:g} s reached: {counts_by_state(counts)}")
        time.sleep(_POLL_S)
    if counts["failed"]:
        raise JobFailed(f"{counts_by_state(counts)}; chorale list --state failed shows the reasons")
    if counts["cancelled"]:
        raise JobCancelled(counts_by_state(counts))
    print_counts(counts, as_json)


def print_counts(counts: dict[str, int], as_json: bool) -> None:
    """Print how many jobs have ended in which state."""
    if as_json:
        print_json({"counts": counts})
    else:
        print_line(counts_by_state(counts))


def _read(farm: Farm, wanted: Filter) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Jobs by state, and the running ones."""
    running = Filter(states=("publishing", "rendering", "placing"), batch=wanted.batch, queue=wanted.queue)
    with farm.database.read() as connection:
        return count_jobs(connection, wanted), list_jobs(connection, running, _ROWS)


def _unfinished(counts: dict[str, int]) -> bool:
    return any(count for state, count in counts.items() if state not in ENDED)


class _ProgressRates:
    """Estimates the time left of each job from its progress since this command first saw it."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], tuple[float, float]] = {}

    def seconds_left(self, row: dict[str, Any]) -> float | None:
        """Estimated seconds left; None while there has been no progress yet."""
        now, progress = time.monotonic(), row["progress"]
        started, initial = self._first.setdefault((row["id"], row["fence"]), (now, progress))
        return None if progress <= initial else (1 - progress) * (now - started) / (progress - initial)


def _line(counts: dict[str, int], running: list[dict[str, Any]]) -> str:
    """Without a terminal: one line each time that a job has progressed by a tenth."""
    jobs = ", ".join(f"{row['id']} {row['state']} {int(row['progress'] * 10) * 10} %" for row in running)
    return counts_by_state(counts) + (f": {jobs}" if jobs else "")


def _display(counts: dict[str, int], running: list[dict[str, Any]]) -> Group:
    table = new_table(("job", "state", "progress", "", "time left", "age", "prompt"))
    for row in running:
        bar = ProgressBar(total=1.0, completed=row["progress"], width=24)
        left = "" if row["seconds_left"] is None else duration(row["seconds_left"])
        cells = (percent(row["progress"]), left, age(row["created"]), plain(row["prompt"][:60]))
        table.add_row(row["id"], row["state"], bar, *cells)
    return Group(plain(counts_by_state(counts)), table)
