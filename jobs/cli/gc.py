"""`chorale gc`: delete files that no job needs any more."""

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
from jobs.cli.farm_options import farm_options
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line
from jobs.db.folders import digest_of
from jobs.db.state_machine import ENDED
from jobs.db.tables import jobs
from jobs.farm import LOGS, Farm, open_images
from jobs.formatting import plural, size
from jobs.input_assets import INPUTS
from render.output.manifest import KEY
from render.sink import WORK
from render.spec import IMAGE_FIELDS

_LOG = re.compile(rf"{LOGS}/[^/]+-[^/]+-[^/]+\.log")
_THREADS = 16
"""Images that are examined at the same time; a store may be far away and hold very many."""


@dataclass(frozen=True)
class _Unneeded:
    """Files that can be deleted, and the reason."""

    url: str
    reason: str
    bytes: int
    modified: float
    delete: Callable[[], None]


@click.command(epilog=examples("chorale gc", "chorale gc --older-than 7 --yes"))
@click.option(
    "--older-than",
    type=click.FloatRange(0),
    default=7.0,
    show_default=True,
    help="Minimum age of the files in days.",
)
@click.option("--yes", is_flag=True, help="Delete the files; without this flag they are only listed.")
@farm_options
def gc(farm: Farm, as_json: bool, older_than: float, yes: bool) -> None:
    """List, or delete with --yes, files that no job needs any more.

    These are old logs, unfinished work of images that are finished or whose jobs have ended, and init
    images of jobs that are done. Finished images and the work of unfinished jobs are never deleted.
    """
    before = time.time() - older_than * 86_400
    found = [each for each in [*_work(farm), *_logs(farm), *_inputs(farm)] if each.modified < before]
    total = sum(each.bytes for each in found)
    for each in found:
        if not as_json:
            print_line(f"{size(each.bytes):>10}  {each.url}  ({each.reason})")
        if yes:
            each.delete()
    if as_json:
        print_json({"removed": yes, "bytes": total, "paths": [each.url for each in found]})
    elif not found:
        print_line("Nothing to delete")
    else:
        amount = f"{plural(len(found), 'item')}, {size(total)}"
        print_line(f"Deleted {amount}" if yes else f"{amount} can be deleted; add --yes to delete them")


def _work(farm: Farm) -> list[_Unneeded]:
    with farm.database.read() as connection:
        unfinished = set(
            connection.execute(select(jobs.c.digest).where(jobs.c.state.not_in(ENDED))).scalars()
        )
    images = open_images(farm.settings)

    def work_of(folder: str) -> _Unneeded | None:
        image = images.within(folder)
        work = list(image.entries(WORK))
        if not work:
            return None
        if image.size(KEY) is not None:
            return _unneeded(image, WORK.rstrip("/"), work, "its image is finished")
        digest = digest_of(folder)
        if digest in unfinished:
            return None
        if folder == digest:
            return _unneeded(image, WORK.rstrip("/"), work, "its job has ended")
        # Nothing will finish it: the job was finished in another folder, or has ended without an image.
        return _unneeded(image, "", list(image.entries()), "it is unfinished and its job has ended")

    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(work_of, (name for name in images.folders() if name not in (LOGS, INPUTS)))
        return [each for each in found if each is not None]


def _logs(farm: Farm) -> list[_Unneeded]:
    with farm.database.read() as connection:
        unfinished = set(connection.execute(select(jobs.c.id).where(jobs.c.state.not_in(ENDED))).scalars())
    return [
        _unneeded(store, entry.key, [entry], "old log")
        for store in (LocalStore(default_home()), open_images(farm.settings))
        for entry in store.entries(f"{LOGS}/")
        if _LOG.fullmatch(entry.key)
        and entry.key.removeprefix(f"{LOGS}/").partition("-")[0] not in unfinished
    ]


def _inputs(farm: Farm) -> list[_Unneeded]:
    digests = [jobs.c.spec[name]["digest"].as_string() for name in IMAGE_FIELDS]
    with farm.database.read() as connection:
        # A failed job may be retried.
        named = connection.execute(select(*digests).where(jobs.c.state.not_in(("done", "cancelled"))))
        needed = {digest for row in named for digest in row}
    return [
        _unneeded(store, entry.key, [entry], "init image of no unfinished job")
        for store in (LocalStore(default_home()), open_images(farm.settings))
        for entry in store.entries(f"{INPUTS}/")
        if entry.key.removeprefix(f"{INPUTS}/") not in needed
    ]


def _unneeded(store: Store, name: str, files: Sequence[Entry], reason: str) -> _Unneeded:
    def delete() -> None:
        for file in files:
            store.delete(file.key)

    total, modified = sum(file.size for file in files), max(file.modified for file in files)
    return _Unneeded(store.url(name), reason, total, modified, delete)
