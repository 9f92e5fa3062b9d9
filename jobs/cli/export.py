"""`chorale export`: one file from a pyramid."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from render.errors import BadInput
from render.picture.export import export_image


@click.command(epilog="Example: chorale export out/vase vase.tif")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--quality", default=90, show_default=True, help="Quality of jpg and webp, 1 to 100.")
@click.option("--force", is_flag=True, help="Replace the target if it exists.")
def export(folder: Path, target: Path, quality: int, force: bool) -> None:
    """Write an image as one .png, .tif (pyramidal BigTIFF), .webp or .jpg, in bounded memory."""
    if not 1 <= quality <= 100:
        raise BadInput("quality", quality, "is not a whole number from 1 to 100")
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("exporting", total=100)
        export_image(
            folder,
            target,
            quality=quality,
            force=force,
            on_progress=lambda per_cent: progress.update(task, completed=per_cent),
        )
    click.echo(f"{target} ({target.stat().st_size / 2**20:.1f} MiB)")
