"""Files that no job needs any more: old logs, unfinished work, inputs of jobs that are done."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Text, cast, select

from infra.settings import default_home
from infra.store.base import Entry, Store
from infra.store.decorator import local_folder
from infra.store.local import LocalStore
from infra.store.parts import abandoned_parts
from jobs.db.folders import digest_of
from jobs.db.follow_ups import FollowUp
from jobs.db.leases import lock_inputs
from jobs.db.state_machine import ENDED
from jobs.db.submission import submissions_in_progress
from jobs.db.tables import jobs
from jobs.farm import LOGS, RENDITIONS, Farm, open_images
from jobs.formatting import plural, size
from jobs.input_assets import INPUTS
from jobs.models.catalog import MODELS
from render.output.manifest import KEY
from render.sink import WORK
from render.spec import FILE_FIELDS

GC = "gc"
"""Kind of the follow-up that deletes them."""
_LOG = re.compile(rf"{LOGS}/[^/]+-[^/]+-[^/]+\.log")
_WAITING = jobs.c.state.not_in(("done", "cancelled"))
"""Of jobs that may run; a failed one may be retried."""
_THREADS = 16
"""Images that are examined at the same time; a store may be far away and hold very many."""


@dataclass(frozen=True)
class Unneeded:
    """Files that can be deleted, and the reason."""

    url: str
    reason: str
    bytes: int
    modified: float
    delete: Callable[[], None]


def find_unneeded(farm: Farm, older_than_days: float) -> list[Unneeded]:
    """All such files of at least that age, in the farm's store and in this machine's home."""
    before = time.time() - older_than_days * 86_400
    found = [*_work(farm), *_logs(farm), *_inputs(farm), *_parts(farm)]
    return [each for each in found if each.modified < before]


def delete_unneeded(farm: Farm, follow_up: FollowUp) -> str:
    """Delete them, for a follow-up. A second time finds only what is left."""
    found = find_unneeded(farm, float(follow_up.payload["older_than_days"]))
    for each in found:
        each.delete()
    return f"deleted {plural(len(found), 'item')}, {size(sum(each.bytes for each in found))}"


def _work(farm: Farm) -> list[Unneeded]:
    with farm.database.read() as connection:
        unfinished = set(
            connection.execute(select(jobs.c.digest).where(jobs.c.state.not_in(ENDED))).scalars()
        )
    images = open_images(farm.settings)

    def work_of(folder: str) -> Unneeded | None:
        image = images.within(folder)
        work = list(image.entries(WORK))
        if not work:
            return None
        if image.size(KEY) is not None:
            return _collect(image, WORK.rstrip("/"), work, "its image is finished")
        digest = digest_of(folder)
        if digest in unfinished:
            return None
        if folder == digest:
            return _collect(image, WORK.rstrip("/"), work, "its job has ended")
        # Nothing will finish it: the job was finished in another folder, or has ended without an image.
        return _collect(image, "", list(image.entries()), "it is unfinished and its job has ended")

    with ThreadPoolExecutor(_THREADS) as pool:
        others = (LOGS, INPUTS, MODELS, RENDITIONS)
        found = pool.map(work_of, (name for name in images.folders() if name not in others))
        return [each for each in found if each is not None]


def _parts(farm: Farm) -> list[Unneeded]:
    """What processes that were killed have left of the files that they were writing."""
    home, images = default_home(), local_folder(open_images(farm.settings))
    folders = [home] if images is None or _is_within(images, home) else [home, images]
    return [
        Unneeded(
            str(each.path),
            "a part of a file whose writer has ended",
            each.bytes,
            each.modified,
            partial(LocalStore(folder).delete, each.path.relative_to(folder).as_posix()),
        )
        for folder in folders
        for each in abandoned_parts(folder)
    ]


def _is_within(folder: Path, other: Path) -> bool:
    return folder.resolve().is_relative_to(other.resolve())


def _logs(farm: Farm) -> list[Unneeded]:
    with farm.database.read() as connection:
        unfinished = set(connection.execute(select(jobs.c.id).where(jobs.c.state.not_in(ENDED))).scalars())
    return [
        _collect(store, entry.key, [entry], "old log")
        for store in (LocalStore(default_home()), open_images(farm.settings))
        for entry in store.entries(f"{LOGS}/")
        if _LOG.fullmatch(entry.key)
        and entry.key.removeprefix(f"{LOGS}/").partition("-")[0] not in unfinished
    ]


def _inputs(farm: Farm) -> list[Unneeded]:
    reason = "input of no unfinished job"
    with farm.database.read() as connection:
        needed = _needed_inputs(connection)
    # A node that lacks an input downloads it; only the store's own copy must not go too early.
    found = [
        _collect(LocalStore(default_home()), entry.key, [entry], reason)
        for entry in LocalStore(default_home()).entries(f"{INPUTS}/")
        if _digest(entry) not in needed
    ]
    images = open_images(farm.settings)
    for entry in images.entries(f"{INPUTS}/"):
        if _digest(entry) not in needed:
            deleted = partial(_delete_input, farm, images, entry)
            found.append(Unneeded(images.url(entry.key), reason, entry.size, entry.modified, deleted))
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
    """Digests of the files of all jobs that may run."""
    files = [jobs.c.spec[name]["digest"].as_string() for name in FILE_FIELDS]
    named = connection.execute(select(*files).where(_WAITING).distinct())
    needed = {digest for row in named for digest in row}
    for name in ("lora", "embedding", "control", "reference"):
        has_any = jobs.c.spec[name][0]["digest"].as_string() != ""
        stored = select(jobs.c.spec[name].as_json()).where(_WAITING, has_any)
        for parts in connection.execute(stored).scalars():
            needed.update(part["digest"] for part in parts)
    return needed


def _collect(store: Store, name: str, files: Sequence[Entry], reason: str) -> Unneeded:
    def delete() -> None:
        for file in files:
            store.delete(file.key)

    total, modified = sum(file.size for file in files), max(file.modified for file in files)
    return Unneeded(store.url(name), reason, total, modified, delete)
