"""`chorale verify`: compare the tiles of an image with its manifest."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.console import Console
from rich.progress import Progress

from infra.settings import read_settings
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line
from jobs.errors import FAILED
from jobs.formatting import plural
from jobs.image_source import open_image
from jobs.image_store import READ_PATIENCE_S, published_image
from render.output.verify import verify_image


@click.command(epilog=examples("chorale verify out/vase", "chorale verify s3://studio/vase"))
@click.argument("image")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def verify(context: click.Context, image: str, as_json: bool) -> None:
    """Check every tile of an image against its manifest. Exit code 3: missing, altered or extra tiles.

    IMAGE is a folder, s3://bucket/prefix or a job's id.
    """
    settings = read_settings({})
    manifest = published_image(open_image(image, settings))
    store = open_image(image, settings, patience_s=READ_PATIENCE_S)
    with Progress(transient=True, disable=as_json, console=Console(stderr=True)) as progress:
        task = progress.add_task("verifying", total=None)
        report = verify_image(
            store, manifest, lambda done, total: progress.update(task, completed=done, total=total)
        )
    if as_json:
        print_json(asdict(report) | {"passes": report.passes})
    else:
        for what in ("missing", "altered", "extra"):
            for key in getattr(report, what):
                print_line(f"{what}: {key}")
        if not report.root_matches:
            print_line("altered: manifest.json (its root digest does not match its tiles)")
        if report.passes:
            print_line(f"OK: {plural(report.tiles, 'tile')} unchanged (root {report.root[:16]})")
    if not report.passes:
        context.exit(FAILED)
