"""`chorale download`: copy an image from its store into a folder."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from infra.settings import read_settings
from infra.store.local import LocalStore
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line
from jobs.download import download
from jobs.formatting import plural, size
from jobs.image_source import open_image
from jobs.image_store import READ_PATIENCE_S, published_image


@click.command(name="download", epilog=examples("chorale download s3://studio/vase out/copy"))
@click.argument("image")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def download_command(image: str, folder: Path, as_json: bool) -> None:
    """Copy an image with all its tiles into a new folder.

    IMAGE is s3://bucket/prefix, a folder or a job's id. Every tile is checked against the manifest. Running
    the same command again resumes an interrupted download.
    """
    settings = read_settings({})
    manifest = published_image(open_image(image, settings))
    store = open_image(image, settings, patience_s=READ_PATIENCE_S)
    with Progress(transient=True, disable=as_json, console=Console(stderr=True)) as progress:
        task = progress.add_task("downloading", total=None)
        fetched = download(
            store,
            manifest,
            LocalStore(folder),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    tiles, root = len(manifest.tiles), manifest.root
    if as_json:
        print_json({"folder": str(folder), "tiles": tiles, "bytes": fetched, "root": root})
    else:
        print_line(f"{folder}: {plural(tiles, 'tile')}, {size(fetched)} downloaded (root {root[:16]})")
