"""Deleting jobs, batches and images with their files: what will go, and the follow-up that makes it go.

A follow-up has all of it: who asked, and which jobs. It deletes the rows, then the files, and may begin again
wherever it was interrupted. Whoever asks may delete the rows at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from infra.store.base import Entry, Store
from jobs.db import follow_ups
from jobs.db.audit import record
from jobs.db.commands import apply_to_all
from jobs.db.deleted_jobs import inputs_of, note_files_gone, pending_files
from jobs.db.deletion import (
    Found,
    Selection,
    files_of,
    inputs_named,
    remove,
    renditions_elsewhere,
)
from jobs.db.follow_ups import FollowUp
from jobs.db.leases import lock_inputs
from jobs.db.submission import submissions_in_progress
from jobs.errors import JobError, LostRace
from jobs.farm import LOGS, RENDITIONS, Farm, open_images
from jobs.formatting import plural
from jobs.input_assets import INPUTS

DELETE = "delete"
"""Kind of the follow-up."""
_THREADS = 16
"""Jobs whose files are listed or deleted at the same time; a store may be far away."""
_CHUNK = 100


class StillStopping(JobError):
    """Ranks of jobs that were cancelled have not stopped yet."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Files in the farm's store."""

    files: int
    bytes: int


def described(found: Found, amount: Amount) -> dict[str, Any]:
    """What a deletion comes to, as JSON."""
    return {
        "batch": found.selection.whole_batch,
        "jobs": len(found.jobs),
        "images": found.done,
        "files": amount.files,
        "bytes": amount.bytes,
        "running": len(found.running),
        "in_other_batches": found.elsewhere,
    }


def count_files(farm: Farm, found: Found) -> Amount:
    """The files that would go. Raises `StoreError`."""
    images = open_images(farm.settings)
    with farm.database.read() as connection:
        each = files_of(connection, found.jobs)
        digests = {digest for job in each for digest in job["inputs"]}
        unneeded = digests - inputs_named(connection, digests, without=frozenset(found.jobs))
        more = renditions_elsewhere(connection, found.selection) if found.selection.batch else []
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = [size for part in pool.map(lambda job: _sizes(images, job), each) for size in part]
    inputs = (images.size(f"{INPUTS}/{digest}") for digest in sorted(unneeded))
    own = {tuple(name) for job in each for name in job["renditions"]}
    others = (images.size(_rendition(name)) for name in more if tuple(name) not in own)
    sizes += [size for size in (*inputs, *others) if size is not None]
    return Amount(files=len(sizes), bytes=sum(sizes))


def request(
    farm: Farm, found: Found, *, by: str, audited_as: str, cancel: bool = False, amount: Amount | None = None
) -> str:
    """Have all of it deleted; returns the id of the follow-up. Running jobs are cancelled with `cancel`.

    Raises `IllegalChange` for running jobs without it, and nothing is deleted then.
    """
    found.check_cancelled(cancel)
    chosen, id = found.selection, f"{DELETE}:{uuid.uuid4().hex[:12]}"
    if found.running:
        apply_to_all(farm.database, "cancel", found.running, by)
    with farm.database.write() as connection:
        more = renditions_elsewhere(connection, chosen) if chosen.batch else []
        payload = {
            "jobs": list(found.jobs),
            "cancelled": list(found.running),
            "batch": chosen.batch,
            "custom_ids": None if chosen.custom_ids is None else list(chosen.custom_ids),
            "renditions": more,
        }
        follow_ups.add(connection, id, DELETE, payload)
        details: dict[str, Any] = {"jobs": len(found.jobs), "follow_up": id}
        details |= {} if amount is None else {"files": amount.files, "bytes": amount.bytes}
        record(connection, audited_as, "delete", chosen.shown, **details)
    return id


def remove_rows(farm: Farm, found: Found, deletion: str) -> list[str]:
    """Delete the rows at once, as far as nothing runs; returns the jobs that are left. The follow-up does the
    rest."""
    return remove(farm.database, found.selection, found.jobs, deletion, found.running)


def delete(farm: Farm, follow_up: FollowUp) -> str:
    """Delete the rows that are left, then the files. Raises `StillStopping`, `StoreError`, `ServiceError`."""
    wanted = follow_up.payload
    custom_ids = wanted["custom_ids"]
    chosen = Selection(
        jobs=() if wanted["batch"] else tuple(wanted["jobs"]),
        batch=wanted["batch"],
        custom_ids=None if custom_ids is None else tuple(custom_ids),
    )
    left, changed = list[str](), None
    try:
        left = remove(farm.database, chosen, wanted["jobs"], follow_up.id, wanted["cancelled"])
    except LostRace as exc:
        # The batch stays; the jobs that are deleted lose their files all the same.
        changed = exc
    images = open_images(farm.settings)
    count = _delete_files(farm, images, follow_up.id)
    for name in wanted["renditions"]:
        images.delete(_rendition(name))
    if chosen.whole_batch is not None and not left and changed is None:
        for entry in list(images.entries(f"{RENDITIONS}/{chosen.whole_batch}/")):
            images.delete(entry.key)
    if left:
        raise StillStopping(f"{plural(len(left), 'job')} still stopping; {left[0]} is the first")
    _delete_inputs(farm, images, follow_up.id)
    if changed is not None:
        raise changed
    return f"deleted the files of {plural(count, 'job')}"


def _delete_files(farm: Farm, images: Store, deletion: str) -> int:
    with farm.database.read() as connection:
        rows = pending_files(connection, deletion)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            for _ in pool.map(lambda row: _delete_those_of(images, row.job, row.files), part):
                pass
            with farm.database.write() as connection:
                note_files_gone(connection, [row.number for row in part])
    return len(rows)


def _delete_those_of(images: Store, job: str, files: dict[str, Any]) -> None:
    for entry in list(_listed(images, job, files["folders"])):
        images.delete(entry.key)
    for name in files["renditions"]:
        images.delete(_rendition(name))


def _delete_inputs(farm: Farm, images: Store, deletion: str) -> None:
    """Those that no other job names. While a batch is being submitted they are left to `chorale gc`."""
    with farm.database.read() as connection:
        digests = sorted(inputs_of(connection, deletion))
    for start in range(0, len(digests), _CHUNK):
        part = digests[start : start + _CHUNK]
        with farm.database.write() as connection:
            lock_inputs(connection)
            if submissions_in_progress(connection):
                return
            named = inputs_named(connection, part)
            for digest in part:
                if digest not in named:
                    images.delete(f"{INPUTS}/{digest}")


def _listed(images: Store, job: str, folders: Iterable[str]) -> Iterator[Entry]:
    """The files of a job's folders, and its logs."""
    for folder in folders:
        yield from images.entries(f"{folder}/")
    yield from images.entries(f"{LOGS}/{job}-")


def _sizes(images: Store, job: dict[str, Any]) -> list[int]:
    sizes = [entry.size for entry in _listed(images, job["job"], job["folders"])]
    made = (images.size(_rendition(name)) for name in job["renditions"])
    return [*sizes, *(size for size in made if size is not None)]


def _rendition(name: Iterable[str]) -> str:
    batch, channel, file = name
    return f"{RENDITIONS}/{batch}/{channel}/{file}"
