"""`chorale logs`: the output of the supervisors and ranks of a job's attempts."""

from __future__ import annotations

import time

import click

from jobs.cli.farm_options import farm_options
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line, print_lines
from jobs.db.queries import find_job, show_job
from jobs.db.state_machine import ENDED
from jobs.errors import JobError
from jobs.farm import Farm, open_images
from jobs.logs import LogReader

_POLL_S = 0.3
_COLLECT_S = 2.0
"""The logs of other nodes reach the store this much later than the job's end."""


@click.command(epilog=examples("chorale logs 3fa9", "chorale logs 3fa9 -f", "chorale logs 3fa9 --attempt 1"))
@click.argument("job")
@click.option("--attempt", type=click.IntRange(1), default=None, help="Only this attempt. [all]")
@click.option("-f", "--follow", is_flag=True, help="Follow the logs until the job has ended.")
@farm_options
def logs(farm: Farm, as_json: bool, job: str, attempt: int | None, follow: bool) -> None:
    """Print the logs of a job. Logs of other machines are there once an attempt has ended."""
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
                print_line(f"==> {name} <==")
                reader.last = name
            print_lines(text.decode(errors="replace"), end="")
        if over or not follow:
            break
        with farm.database.read() as connection:
            over = show_job(connection, found)["state"] in ENDED
        time.sleep(_COLLECT_S if over else _POLL_S)
        first = False
    if reader.last is None:
        raise JobError(f"job {found} has no logs yet; chorale show {found} shows its state")
