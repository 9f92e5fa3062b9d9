"""`chorale gc`: remove what no job needs any more."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import click
from sqlalchemy import select

from infra.settings import default_home
from infra.store.base import Entry, Store
from infra.store.local import LocalStore
from jobs.cli.farm_options import farm_options, print_json
from jobs.db.state_machine import ENDED
from jobs.db.tables import jobs
from jobs.farm import LOGS, Farm, open_images
from jobs.input_assets import INPUTS
from render.output.manifest import KEY
from render.sink import WORK

_LOG = re.compile(rf"{LOGS}/[^/]+-[^/]+-[^/]+\.log")
_AT_ONCE = 16
"""Images that are looked into at the same time; a store may be far away and hold very many."""


@dataclass(frozen=True)
class _Litter:
    where: str
    why: str
    size: int
    changed: float
    remove: Callable[[], None]


@click.command(epilog="Examples: chorale gc; chorale gc --older-than 7 --yes")
@click.option(
    "--older-than", type=click.FloatRange(0), default=7.0, show_default=True, help="Days untouched."
)
@click.option("--yes", is_flag=True, help="Remove it; without this, only tell.")
@farm_options
def gc(farm: Farm, as_json: bool, older_than: float, yes: bool) -> None:
    """Find old logs, unfinished work of images that are finished or whose jobs have ended, and pictures that
    no job starts from any more.

    Finished images are never touched, nor is the work of a job that may still go on.
    """
    before = time.time() - older_than * 86_400
    found = [litter for litter in [*_work(farm), *_logs(farm), *_inputs(farm)] if litter.changed < before]
    total = sum(litter.size for litter in found)
    for litter in found:
        if not as_json:
            click.echo(f"{litter.size / 1e6:9.2f} MB  {litter.where}  ({litter.why})")
        if yes:
            litter.remove()
    if as_json:
        print_json({"removed": yes, "bytes": total, "paths": [litter.where for litter in found]})
    elif not found:
        click.echo("there is nothing to remove")
    else:
        verb = "removed" if yes else "would be removed; add --yes to do it"
        click.echo(f"{len(found)} things, {total / 1e6:.2f} MB, {verb}")


def _work(farm: Farm) -> list[_Litter]:
    with farm.database.read() as connection:
        living = set(connection.execute(select(jobs.c.digest).where(jobs.c.state.not_in(ENDED))).scalars())
    images = open_images(farm.settings)

    def look(digest: str) -> _Litter | None:
        image = images.within(digest)
        work = list(image.entries(WORK))
        if not work:
            return None
        if image.size(KEY) is not None:
            return _litter(image, "work", work, "its image is finished")
        return None if digest in living else _litter(image, "work", work, "its job has ended")

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        looked = pool.map(look, (name for name in images.folders() if name not in (LOGS, INPUTS)))
        return [litter for litter in looked if litter is not None]


def _logs(farm: Farm) -> list[_Litter]:
    with farm.database.read() as connection:
        living = set(connection.execute(select(jobs.c.id).where(jobs.c.state.not_in(ENDED))).scalars())
    return [
        _litter(store, entry.key, [entry], "an old log")
        for store in (LocalStore(default_home()), open_images(farm.settings))
        for entry in store.entries(f"{LOGS}/")
        if _LOG.fullmatch(entry.key) and entry.key.removeprefix(f"{LOGS}/").partition("-")[0] not in living
    ]


def _inputs(farm: Farm) -> list[_Litter]:
    digest = jobs.c.spec["init"]["digest"].as_string()
    with farm.database.read() as connection:
        # A failed job may be tried again.
        needed = set(
            connection.execute(select(digest).where(jobs.c.state.not_in(("done", "cancelled")))).scalars()
        )
    return [
        _litter(store, entry.key, [entry], "no job starts from it any more")
        for store in (LocalStore(default_home()), open_images(farm.settings))
        for entry in store.entries(f"{INPUTS}/")
        if entry.key.removeprefix(f"{INPUTS}/") not in needed
    ]


def _litter(store: Store, name: str, files: Sequence[Entry], why: str) -> _Litter:
    def remove() -> None:
        for file in files:
            store.delete(file.key)

    size, changed = sum(file.size for file in files), max(file.modified for file in files)
    return _Litter(store.url(name), why, size, changed, remove)
