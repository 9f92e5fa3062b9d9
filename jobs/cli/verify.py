"""`chorale verify`: is every tile as the manifest says?"""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.progress import Progress

from infra.settings import read_settings
from infra.store.open import open_store
from jobs.errors import FAILED
from jobs.image_store import READ_PATIENCE_S, published_image
from render.output.verify import verify_image


@click.command(epilog="Examples: chorale verify out/vase; chorale verify s3://studio/vase")
@click.argument("image")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def verify(context: click.Context, image: str, as_json: bool) -> None:
    """Hash every tile of an image again; name what is missing, altered or extra (exit 3).

    IMAGE is a folder, or s3://bucket/prefix.
    """
    settings = read_settings({})
    manifest = published_image(open_store(image, settings, field="image"))
    store = open_store(image, settings, patience_s=READ_PATIENCE_S)
    with Progress(transient=True, disable=as_json) as progress:
        task = progress.add_task("verifying", total=None)
        report = verify_image(
            store, manifest, lambda done, total: progress.update(task, completed=done, total=total)
        )
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
