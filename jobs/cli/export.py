"""`chorale export`: one file from a pyramid."""

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
from jobs.download import fetch_tiles, full_level
from jobs.image_store import READ_PATIENCE_S, published_image
from render.errors import BadInput
from render.output.export import export_image, export_targets


@click.command(
    epilog="Examples: chorale export out/vase vase.tif; chorale export s3://studio/vase vase.png; "
    "chorale export out/shelf 'shelf-{tile}.png'"
)
@click.argument("image")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--quality", default=90, show_default=True, help="Quality of jpg and webp, 1 to 100.")
@click.option("--force", is_flag=True, help="Replace the target if it exists.")
def export(image: str, target: Path, quality: int, force: bool) -> None:
    """Write an image as one .png, .tif (pyramidal BigTIFF), .webp or .jpg, in bounded memory.

    IMAGE is a folder, or s3://bucket/prefix; then its tiles pass through a temporary folder beside TARGET.
    Where TARGET's name holds {tile}, each tile of a tile set becomes a file of its name.
    """
    if not 1 <= quality <= 100:
        raise BadInput("quality", quality, "is not a whole number from 1 to 100")
    settings = read_settings({})
    store = open_store(image, settings, field="image")
    manifest = published_image(store)
    targets = export_targets(manifest, target, force)
    with (
        Progress(transient=True, console=Console(stderr=True)) as progress,
        _on_this_machine(store, target) as local,
    ):
        if local is not store:
            task = progress.add_task("fetching", total=None)
            patient = open_store(image, settings, patience_s=READ_PATIENCE_S)
            fetch_tiles(
                patient,
                manifest,
                full_level(manifest),
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
        click.echo(f"{each} ({each.stat().st_size / 2**20:.1f} MiB)")


def _advance(progress: Progress, task: TaskID, before: int, per_cent: int) -> None:
    progress.update(task, completed=before + per_cent)


@contextmanager
def _on_this_machine(store: Store, target: Path) -> Iterator[LocalStore]:
    """The store itself, or a folder beside the target for what is fetched.

    libvips reads many tiles at once and cannot wait for a network in the middle.
    """
    if isinstance(store, LocalStore):
        yield store
        return
    with tempfile.TemporaryDirectory(prefix=".chorale-", dir=target.parent) as name:
        yield LocalStore(Path(name))
