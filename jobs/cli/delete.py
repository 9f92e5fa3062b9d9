"""`chorale delete`: delete jobs, batches and images of batches, with their files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click
from sqlalchemy import Connection

from jobs.cli.farm_options import farm_options, this_user, whoami
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line
from jobs.db.deletion import Found, Selection, find
from jobs.db.queries import find_job
from jobs.deletion import count_files, described, remove_rows, request
from jobs.errors import FAILED
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up
from jobs.formatting import plural, size
from jobs.review.named_images import named_images

COUNTS = ("jobs", "images", "files", "bytes", "running", "in_other_batches", "stopping")
"""What is counted of a deletion."""
_STOP_S = 60.0
"""How long ranks that were cancelled are waited for."""
_POLL_S = 0.5


@click.command(
    epilog=examples(
        "chorale delete 3fa9",
        "chorale delete --batch 8c1f00aa3b52 --images rejected --yes",
        "chorale delete --batch 8c1f00aa3b52 --cancel --yes",
    )
)
@click.argument("ids", nargs=-1, metavar="[JOB]...")
@click.option("--batch", default=None, help="Delete this batch with all its jobs that are in no other one.")
@click.option(
    "--images",
    multiple=True,
    help="With --batch: only these images, by custom ids, or a set such as rejected (see review).",
)
@click.option("--cancel", is_flag=True, help="Cancel those that run, and delete them once they have stopped.")
@click.option("--dry-run", is_flag=True, help="Say what would go, as without --yes.")
@click.option("--yes", is_flag=True, help="Delete; without this flag the command only says what would go.")
@click.option("--detach", is_flag=True, help="With --yes: have a node of the farm delete the files.")
@farm_options
@click.pass_context
def delete(
    context: click.Context,
    /,
    farm: Farm,
    as_json: bool,
    ids: tuple[str, ...],
    batch: str | None,
    images: tuple[str, ...],
    cancel: bool,
    dry_run: bool,
    yes: bool,
    detach: bool,
) -> None:
    """Say what would be deleted, or with --yes delete jobs, their images and all their files.

    Files are the pyramids, unfinished work, logs, files made for channels, and input files that no other job
    names. A job of a batch that is in another batch too stays. Running jobs are refused without --cancel, as
    are jobs that others wait for. Receipts and the audit log stay. The same image can be submitted again.
    """
    check_what(ids, batch, images, dry_run, yes, detach)
    with farm.database.read() as connection:
        found = find(connection, _selection(connection, ids, batch, images))
    amount = count_files(farm, found)
    document = described(found, amount)
    if not yes:
        print_deletion(document | {"stopping": 0, "deleted": False}, as_json)
        return
    follow_up = request(farm, found, by=whoami(), audited_as=this_user(), cancel=cancel, amount=amount)
    left = _remove(farm, found, follow_up)
    document |= {"deleted": True, "follow_up": follow_up}
    problem = None
    if not (detach or left):
        result = do_follow_up(farm, follow_up)
        problem = None if result.retry_s is None else result.text
    if problem is not None:
        document["problem"] = problem
    print_deletion(document | {"stopping": len(left)}, as_json)
    if problem is not None:
        context.exit(FAILED)


def check_what(
    ids: tuple[str, ...], batch: str | None, images: tuple[str, ...], dry_run: bool, yes: bool, detach: bool
) -> None:
    """Raise `UsageError` for options that contradict each other."""
    if bool(ids) == (batch is not None):
        either = ", not both" if ids else ""
        raise click.UsageError(f"Name the jobs to delete, or give --batch{either}")
    if images and batch is None:
        raise click.UsageError("--images needs --batch")
    if dry_run and yes:
        raise click.UsageError("Give --dry-run or --yes, not both")
    if detach and not yes:
        raise click.UsageError("--detach deletes; add --yes")


def _selection(
    connection: Connection, ids: tuple[str, ...], batch: str | None, images: tuple[str, ...]
) -> Selection:
    if batch is None:
        return Selection(jobs=tuple(sorted({find_job(connection, each) for each in ids})))
    if not images:
        return Selection(batch=batch)
    return Selection(batch=batch, custom_ids=named_images(connection, batch, images))


def print_deletion(document: Mapping[str, Any], as_json: bool) -> None:
    """Print what would go, or has gone."""
    if as_json:
        print_json(dict(document))
        return
    what = f"{plural(document['jobs'], 'job')} ({plural(document['images'], 'image')})"
    what = f"batch {document['batch']} with {what}" if document["batch"] else what
    what += f", {plural(document['files'], 'file')}, {size(document['bytes'])}"
    if document["in_other_batches"]:
        what += f"; {plural(document['in_other_batches'], 'job')} of other batches stay there"
    if not document["deleted"]:
        running = document["running"]
        fix = "--cancel --yes" if running else "--yes"
        print_line(f"Would delete {what}")
        if running:
            print_line(f"{plural(running, 'job')} {'runs' if running == 1 else 'run'}")
        print_line(f"Add {fix} to delete")
        return
    print_line(f"Deleted {what}")
    if document.get("stopping"):
        print_line(f"{plural(document['stopping'], 'job')} still stopping; a node deletes the rest")
    elif document.get("problem"):
        print_line(f"chorale: files are left ({document['problem']}); a node tries again", error=True)


def _remove(farm: Farm, found: Found, follow_up: str) -> list[str]:
    """Delete the rows, once what was cancelled has stopped. Returns what still has not."""
    left, end = remove_rows(farm, found, follow_up), time.monotonic() + _STOP_S
    while left and time.monotonic() < end:
        time.sleep(_POLL_S)
        left = remove_rows(farm, found, follow_up)
    return left
