"""`chorale logs`: what the supervisors and ranks of a job's attempts have said."""

from __future__ import annotations

import time
from pathlib import Path

import click

from jobs.cli.farm_options import farm_options, print_json
from jobs.errors import JobError
from jobs.farm import Farm
from jobs.node.log import log_files
from jobs.state.machine import ENDED
from jobs.state.queries import find_job, show_job

_LOOK_S = 0.3
_LAST_WORDS_S = 2.0


@click.command(epilog="Examples: chorale logs 3fa9; chorale logs 3fa9 -f; chorale logs 3fa9 --attempt 1")
@click.argument("job")
@click.option("--attempt", type=click.IntRange(1), default=None, help="Only this attempt. [all]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@farm_options
def logs(farm: Farm, as_json: bool, job: str, attempt: int | None, follow: bool) -> None:
    """Show a job's logs: those of this machine live, those of others once an attempt has ended."""
    with farm.database.read() as connection:
        found = find_job(connection, job)
    if as_json:
        files = log_files(farm.settings, found, attempt)
        print_json({"job": found, "logs": {path.name: path.read_text(errors="replace") for path in files}})
        return
    shown: dict[str, int] = {}
    over = False
    while True:
        for path in log_files(farm.settings, found, attempt):
            _print_new(path, shown)
        if over or not follow:
            break
        with farm.database.read() as connection:
            over = show_job(connection, found)["state"] in ENDED
        # The last words come a moment after the end, from another machine by way of the store.
        time.sleep(_LAST_WORDS_S if over else _LOOK_S)
    if not shown:
        raise JobError(f"there are no logs of job {found} here yet; chorale show {found} tells its state")


def _print_new(path: Path, shown: dict[str, int]) -> None:
    with path.open("rb") as file:
        file.seek(shown.get(path.name, 0))
        text = file.read()
    if path.name not in shown:
        click.echo(f"==> {path.name} <==")
    click.echo(text.decode(errors="replace"), nl=False)
    shown[path.name] = shown.get(path.name, 0) + len(text)
