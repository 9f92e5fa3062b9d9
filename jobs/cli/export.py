"""`chorale export`: write an image as one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, TaskID

from infra.settings import read_settings
from infra.store.base import Store
from infra.store.local import LocalStore
from infra.store.open import open_store
from jobs.cli.help import examples
from jobs.cli.terminal import print_line
from jobs.download import fetch_tiles
from jobs.formatting import size
from jobs.image_store import READ_PATIENCE_S, published_image
from render.errors import BadInput
from render.output.export import export_image, export_targets


@click.command(
    epilog=examples(
        "chorale export out/vase vase.tif",
        "chorale export s3://studio/vase vase.png",
        "chorale export out/shelf 'shelf-{tile}.png'",
    )
)
@click.argument("image")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--quality", default=90, show_default=True, help="Quality of .jpg and .webp, 1 to 100.")
@click.option("--force", is_flag=True, help="Overwrite the target.")
def export(image: str, target: Path, quality: int, force: bool) -> None:
    """Write an image as one .png, .tif (pyramidal BigTIFF), .webp or .jpg file.

    IMAGE is a folder or s3://bucket/prefix. Tiles of a bucket are downloaded into a temporary folder next
    to TARGET. Memory use does not grow with the image. If TARGET contains {tile}, each tile of a tile set
    becomes a file named after it.
    """
    if not 1 <= quality <= 100:
        raise BadInput("quality", quality, "is not from 1 to 100; use e.g. 90")
    settings = read_settings({})
    store = open_store(image, settings, field="image")
    manifest = published_image(store)
    targets = export_targets(manifest, target, force)
    with (
        Progress(transient=True, console=Console(stderr=True)) as progress,
        _local_tiles(store, target) as local,
    ):
        if local is not store:
            task = progress.add_task("downloading", total=None)
            retrying = open_store(image, settings, patience_s=READ_PATIENCE_S)
            fetch_tiles(
                retrying,
                manifest,
                manifest.full_level_keys(),
                local,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        task = progress.add_task("exporting", total=100 * len(targets))
        for number, (each, part) in enumerate(targets.items()):
            done = partial(_advance, progress, task, 100 * number)
            export_image(
                local.folder, manifest, each, part=part, quality=quality, force=force, on_progress=done
            )
    for each in targets:
        print_line(f"{each} ({size(each.stat().st_size)})")


def _advance(progress: Progress, task: TaskID, before: int, per_cent: int) -> None:
    progress.update(task, completed=before + per_cent)


@contextmanager
def _local_tiles(store: Store, target: Path) -> Iterator[LocalStore]:
    """The store itself when it is local, else a temporary folder next to the target for its tiles.

    libvips reads many tiles at once and cannot wait for the network.
    """
    if isinstance(store, LocalStore):
        yield store
        return
    with tempfile.TemporaryDirectory(prefix=".chorale-", dir=target.parent) as name:
        yield LocalStore(Path(name))
