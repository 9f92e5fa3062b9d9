"""`chorale verify`: is every tile as the manifest says?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.progress import Progress

from jobs.errors import FAILED
from render.picture.verify import verify_image


@click.command(epilog="Example: chorale verify out/vase")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def verify(context: click.Context, folder: Path, as_json: bool) -> None:
    """Hash every tile of an image again; name what is missing, altered or extra (exit 3)."""
    with Progress(transient=True, disable=as_json) as progress:
        task = progress.add_task("verifying", total=None)
        report = verify_image(folder, lambda done, total: progress.update(task, completed=done, total=total))
    if as_json:
        click.echo(json.dumps(asdict(report) | {"passes": report.passes}))
    else:
        for what in ("missing", "altered", "extra"):
            for key in getattr(report, what):
                click.echo(f"{what}: {key}")
        if not report.root_matches:
            click.echo("altered: manifest.json (its root is not that of its tiles)")
        if report.passes:
            click.echo(f"All {report.tiles} tiles are as they were written (root {report.root[:16]})")
    if not report.passes:
        context.exit(FAILED)
