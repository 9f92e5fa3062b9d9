"""`chorale gc`: delete files that no job needs any more."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import click
from sqlalchemy import Connection, Text, cast, select

from infra.settings import default_home
from infra.store.base import Entry, Store
from infra.store.local import LocalStore
from jobs.cli.farm_options import farm_options, this_user
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line
from jobs.db.audit import record
from jobs.db.folders import digest_of
from jobs.db.leases import lock_inputs
from jobs.db.state_machine import ENDED
from jobs.db.submission import submissions_in_progress
from jobs.db.tables import jobs
from jobs.farm import LOGS, Farm, open_images
from jobs.formatting import plural, size
from jobs.input_assets import INPUTS
from render.output.manifest import KEY
from render.sink import WORK
from render.spec import IMAGE_FIELDS

_LOG = re.compile(rf"{LOGS}/[^/]+-[^/]+-[^/]+\.log")
_WAITING = jobs.c.state.not_in(("done", "cancelled"))
"""Of jobs that may run; a failed one may be retried."""
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
    images and LoRA of jobs that are done; none of these while a batch is being submitted. Finished images and
    the work of unfinished jobs are never deleted.
    """
    before = time.time() - older_than * 86_400
    found = [each for each in [*_work(farm), *_logs(farm), *_inputs(farm)] if each.modified < before]
    total = sum(each.bytes for each in found)
    if yes and found:
        with farm.database.write() as connection:
            record(connection, this_user(), "delete files", "the farm", items=len(found), bytes=total)
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
    reason = "input of no unfinished job"
    with farm.database.read() as connection:
        needed = _needed_inputs(connection)
    # A node that lacks an input downloads it; only the store's own copy must not go too early.
    found = [
        _unneeded(LocalStore(default_home()), entry.key, [entry], reason)
        for entry in LocalStore(default_home()).entries(f"{INPUTS}/")
        if _digest(entry) not in needed
    ]
    images = open_images(farm.settings)
    for entry in images.entries(f"{INPUTS}/"):
        if _digest(entry) not in needed:
            deleted = partial(_delete_input, farm, images, entry)
            found.append(_Unneeded(images.url(entry.key), reason, entry.size, entry.modified, deleted))
    return found


def _delete_input(farm: Farm, images: Store, entry: Entry) -> None:
    """Delete an input unless a batch that may need it is being submitted, or has been meanwhile."""
    with farm.database.write() as connection:
        lock_inputs(connection)
        needed = select(jobs.c.id).where(_WAITING, cast(jobs.c.spec, Text).contains(_digest(entry))).limit(1)
        if not submissions_in_progress(connection) and connection.execute(needed).first() is None:
            images.delete(entry.key)


def _digest(entry: Entry) -> str:
    return entry.key.removeprefix(f"{INPUTS}/")


def _needed_inputs(connection: Connection) -> set[str]:
    """Digests of the images, control pictures and LoRA of all jobs that may run."""
    images = [jobs.c.spec[name]["digest"].as_string() for name in IMAGE_FIELDS]
    named = connection.execute(select(*images).where(_WAITING).distinct())
    needed = {digest for row in named for digest in row}
    for name in ("lora", "control"):
        has_any = jobs.c.spec[name][0]["digest"].as_string() != ""
        stored = select(jobs.c.spec[name].as_json()).where(_WAITING, has_any)
        for parts in connection.execute(stored).scalars():
            needed.update(part["digest"] for part in parts)
    return needed


def _unneeded(store: Store, name: str, files: Sequence[Entry], reason: str) -> _Unneeded:
    def delete() -> None:
        for file in files:
            store.delete(file.key)

    total, modified = sum(file.size for file in files), max(file.modified for file in files)
    return _Unneeded(store.url(name), reason, total, modified, delete)
