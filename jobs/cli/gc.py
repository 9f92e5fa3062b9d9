"""`chorale gc`: delete files that no job needs any more."""

from __future__ import annotations

import uuid

import click

from jobs.cli.farm_options import farm_options, this_user
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line
from jobs.db.audit import record
from jobs.db.follow_ups import add
from jobs.farm import Farm
from jobs.formatting import plural, size
from jobs.unneeded import GC, find_unneeded


@click.command(epilog=examples("chorale gc", "chorale gc --older-than 7 --yes", "chorale gc --yes --detach"))
@click.option(
    "--older-than",
    type=click.FloatRange(0),
    default=7.0,
    show_default=True,
    help="Minimum age of the files in days.",
)
@click.option("--yes", is_flag=True, help="Delete the files; without this flag they are only listed.")
@click.option("--detach", is_flag=True, help="With --yes: have a node of the farm delete them, and return.")
@farm_options
def gc(farm: Farm, as_json: bool, older_than: float, yes: bool, detach: bool) -> None:
    """List, or delete with --yes, files that no job needs any more.

    These are old logs, unfinished work of images that are finished or whose jobs have ended, init images
    and LoRA of jobs that are done, none of these while a batch is being submitted, and parts of files whose
    writer was killed, at least an hour old. Finished images and the work of unfinished jobs are never
    deleted.
    """
    if detach:
        _detach(farm, as_json, older_than, yes)
        return
    found = find_unneeded(farm, older_than)
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


def _detach(farm: Farm, as_json: bool, older_than: float, yes: bool) -> None:
    """Leave it to the farm: a large store takes long, and a node may be nearer to it."""
    if not yes:
        raise click.UsageError("--detach deletes files; add --yes, or list them first without --detach")
    follow_up = f"{GC}:{uuid.uuid4().hex[:12]}"
    with farm.database.write() as connection:
        record(connection, this_user(), "delete files", "the farm", follow_up=follow_up)
        add(connection, follow_up, GC, {"older_than_days": older_than})
    if as_json:
        print_json({"follow_up": follow_up})
    else:
        print_line(f"A node of the farm deletes them ({follow_up})")
