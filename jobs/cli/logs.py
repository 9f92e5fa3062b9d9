"""`chorale logs`: what the supervisors and ranks of a job's attempts have said."""

from __future__ import annotations

import time

import click

from jobs.cli.farm_options import farm_options, print_json
from jobs.db.queries import find_job, show_job
from jobs.db.state_machine import ENDED
from jobs.errors import JobError
from jobs.farm import Farm, open_images
from jobs.logs import LogReader

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
    reader = LogReader(open_images(farm.settings), found, attempt)
    if as_json:
        texts = {name: text.decode(errors="replace") for name, text in reader.new(True)}
        print_json({"job": found, "logs": texts})
        return
    over, first = False, True
    while True:
        for name, text in reader.new(first or over):
            if reader.last != name:
                click.echo(f"==> {name} <==")
                reader.last = name
            click.echo(text.decode(errors="replace"), nl=False)
        if over or not follow:
            break
        with farm.database.read() as connection:
            over = show_job(connection, found)["state"] in ENDED
        # The last words come a moment after the end, from another machine by way of the store.
        time.sleep(_LAST_WORDS_S if over else _LOOK_S)
        first = False
    if reader.last is None:
        raise JobError(f"there are no logs of job {found} here yet; chorale show {found} tells its state")
