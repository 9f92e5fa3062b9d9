"""`chorale migrate`: the farm's database, brought to this version's schema."""

from __future__ import annotations

import click

from jobs.cli.farm_options import farm_options, print_json
from jobs.farm import Farm


@click.command(epilog="Example: chorale migrate")
@farm_options
def migrate(farm: Farm, as_json: bool) -> None:
    """Bring the database to this version's schema. Every command does so when it has to; this does no more.

    An older version goes on working with it, so a farm can be upgraded while it renders.
    """
    if as_json:
        print_json({"migrated": True})
    else:
        click.echo("the database has this version's schema")
