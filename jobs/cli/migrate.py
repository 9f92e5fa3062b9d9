"""`chorale migrate`: upgrade the farm's database to the schema of this version."""

from __future__ import annotations

import click

from jobs.cli.farm_options import farm_options
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line
from jobs.farm import Farm


@click.command(epilog=examples("chorale migrate"))
@farm_options
def migrate(farm: Farm, as_json: bool) -> None:
    """Upgrade the database to the schema of this version. Every command does this when it is needed.

    Older versions keep working with the new schema, so a farm can be upgraded while it renders.
    """
    if as_json:
        print_json({"migrated": True})
    else:
        print_line("The database is up to date")
