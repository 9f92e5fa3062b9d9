"""`chorale logs`: what the supervisors and ranks of a job's attempts have said."""

from __future__ import annotations

import time
from fnmatch import fnmatch
from pathlib import Path

import click

from infra.settings import default_home
from infra.store.base import Store
from jobs.cli.farm_options import farm_options, print_json
from jobs.errors import JobError
from jobs.farm import LOGS, Farm, open_images
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
    number = "*" if attempt is None else f"{attempt:04d}"
    reader = _Reader(open_images(farm.settings), f"{found}-{number}-*.log")
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


class _Reader:
    """Gives the new text of a job's logs; of one that is here and among the collected ones, that of here."""

    def __init__(self, images: Store, pattern: str) -> None:
        self._images, self._pattern = images, pattern
        self._read: dict[str, int] = {}
        self.last: str | None = None
        """Name of the log that was shown last."""

    def new(self, collected: bool) -> list[tuple[str, bytes]]:
        """(name, text) by attempt; `collected` asks the store too, which may be far away."""
        found = [(path.name, self._tail(path)) for path in (default_home() / "logs").glob(self._pattern)]
        if collected:
            found += self._of_others({name for name, _ in found})
        return sorted((name, text) for name, text in found if text)

    def _tail(self, path: Path) -> bytes:
        with path.open("rb") as file:
            file.seek(self._read.get(path.name, 0))
            text = file.read()
        self._read[path.name] = self._read.get(path.name, 0) + len(text)
        return text

    def _of_others(self, own: set[str]) -> list[tuple[str, bytes]]:
        """A collected log is whole, so each is read once."""
        prefix = f"{LOGS}/{self._pattern.partition('*')[0]}"
        names = [entry.key.removeprefix(f"{LOGS}/") for entry in self._images.entries(prefix)]
        fresh = [name for name in names if name not in own | self._read.keys() and self._fits(name)]
        self._read |= dict.fromkeys(fresh, 0)
        return [(name, self._images.get(f"{LOGS}/{name}")) for name in fresh]

    def _fits(self, name: str) -> bool:
        return fnmatch(name, self._pattern)
