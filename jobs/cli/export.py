"""`chorale export`: write an image as one file, or the images of a batch as files for a channel."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress, TaskID

from infra.settings import Settings, read_settings
from jobs.cli.help import examples
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.download import local_tiles
from jobs.errors import FAILED
from jobs.formatting import size
from jobs.image_source import open_image
from jobs.image_store import READ_PATIENCE_S, published_image
from jobs.renditions.channel import FORMATS, known_channels
from jobs.renditions.options import read_wanted
from render.output.export import export_image, export_targets
from render.output.manifest import Manifest

if TYPE_CHECKING:
    from jobs.renditions.signed_files import FileSigning


@click.command(
    epilog=examples(
        "chorale export out/vase vase.tif",
        "chorale export out/shelf 'shelf-{tile}.png'",
        "chorale export 8c1f00aa3b5271de vase.jpg --size 2000x2000 --max-bytes 2MB --background white",
        "chorale export --batch 8c1f00aa3b52 'out/{base_id}_{n}.webp' --size 1200x1200",
        "chorale export --batch 8c1f00aa3b52 out/ --channel shopify --report out/shopify.jsonl",
        "chorale export --batch 8c1f00aa3b52 --channel amazon --detach",
    )
)
@click.argument("image", required=False)
@click.argument("target", required=False)
@click.option("--batch", default=None, help="Export the finished images of this batch instead of one IMAGE.")
@click.option(
    "--all", "everything", is_flag=True, help="With --batch, also images that reviewers have not kept."
)
@click.option("--channel", default=None, help="Size, format, name and rules of a channel, or a .yaml file.")
@click.option("--channels", "list_channels", is_flag=True, help="List the channels, and export nothing.")
@click.option("--size", default=None, help="WIDTHxHEIGHT in pixels. [the image's own]")
@click.option("--fit", type=click.Choice(("pad", "crop", "inside")), help="How another shape is made. [pad]")
@click.option("--format", type=click.Choice(FORMATS), help="Format. [by the ending of TARGET]")
@click.option(
    "--quality", type=click.IntRange(1, 100), help="Quality of .jpg and .webp. [90, or the channel's]"
)
@click.option(
    "--max-bytes", default=None, help="Largest file, e.g. 2MB; the quality is lowered until it fits."
)
@click.option(
    "--background", default=None, help="Color behind padding and transparency, e.g. white or #e6e6e6."
)
@click.option("--dpi", type=click.IntRange(1, 10_000), help="Resolution that the file names. [72]")
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write one JSON line for each file and its rules."
)
@click.option(
    "--detach", is_flag=True, help="With --batch and --channel: have the farm make the files, and return."
)
@click.option("--publish-prompt", is_flag=True, help="Write the prompts into the file's metadata, too.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.pass_context
def export(
    context: click.Context,
    /,
    image: str | None,
    target: str | None,
    batch: str | None,
    everything: bool,
    list_channels: bool,
    detach: bool,
    as_json: bool,
    force: bool,
    report: Path | None,
    quality: int | None,
    publish_prompt: bool,
    **options: Any,
) -> None:
    """Write an image as one .png, .tif (pyramidal BigTIFF), .webp or .jpg file.

    IMAGE is a folder, s3://bucket/prefix or a job's id. At full size and without a channel, memory use does
    not grow with the image, and {tile} in TARGET writes each tile of a tile set as a file named after it.

    With --detach, workers of the farm make the files, of what is done and of what will be, and keep them in
    the farm's store; the board and REST have them one by one and as a ZIP.

    With --batch, the images of a batch that has been reviewed (chorale review) are those that were kept.
    TARGET is a template with {custom_id}; {base_id} and {n}, the id in the batch's file and the
    number of the image among those of that row; {row}, {job}, {seed} or {channel}. With --channel it may be a
    folder. Each rule of the channel is measured in the finished file; exit code 3: a file breaks a rule.

    With CHORALE_C2PA_CERTIFICATE and CHORALE_C2PA_KEY, files are signed (C2PA); a .tif gets its claim in a
    file beside it, which ends in .c2pa.
    """
    if list_channels:
        _print_channels(as_json)
        return
    if everything and batch is None:
        raise click.UsageError("--all needs --batch")
    if detach:
        if batch is None or options["channel"] is None or image is not None:
            raise click.UsageError("--detach needs --batch and --channel, and no TARGET")
        _ask_for(batch, options["channel"], as_json)
        return
    if batch is not None:
        # With --batch there is only one argument, the template.
        if image is None or target is not None:
            raise click.UsageError("Give --batch ID and one TARGET")
        target = image
    elif image is None or target is None:
        raise click.UsageError("Give an IMAGE and a TARGET, or --batch ID and a TARGET")
    settings = read_settings({})
    if batch is None and all(value is None for value in options.values()):
        assert image is not None, "checked above"
        _export_whole(image, Path(target), quality or 90, publish_prompt, force, settings, as_json)
        return
    # A folder at full size needs no farm, and its libraries take longer to import.
    from jobs.cli.export_renditions import export_batch, export_one, print_files

    wanted = read_wanted(target, quality=quality, **options)
    if batch is None:
        assert image is not None, "checked above"
        files = export_one(image, target, wanted, force, settings, publish_prompt)
    else:
        files = export_batch(batch, target, wanted, force, settings, everything, publish_prompt)
    print_files(files, report, as_json)
    if any(not made.passes for made in files.made):
        context.exit(FAILED)


def _ask_for(batch: str, channel: str, as_json: bool) -> None:
    from jobs.cli.farm_options import this_user
    from jobs.db.audit import record
    from jobs.farm import open_farm
    from jobs.renditions.farm import ask_for, wanted_channels

    settings = read_settings({})
    wanted = wanted_channels([channel], files=True, settings=settings)
    with open_farm(settings) as farm, farm.database.write() as connection:
        ask_for(connection, batch, wanted)
        record(connection, this_user(), "renditions", f"batch {batch}", channels=sorted(wanted))
    if as_json:
        print_json({"batch": batch, "channels": sorted(wanted)})
    else:
        print_line(
            f"Files of batch {batch} for {', '.join(wanted)} are being made; the board has them as a ZIP"
        )


def _print_channels(as_json: bool) -> None:
    channels = known_channels()
    if as_json:
        print_json({"channels": [channel.model_dump(mode="json") for channel in channels]})
        return
    rows = [(each.name, each.title, each.source, each.checked) for each in channels]
    print_table("channels", ("name", "title", "rules published at", "read on"), rows)


def _export_whole(
    image: str,
    target: Path,
    quality: int,
    publish_prompt: bool,
    force: bool,
    settings: Settings,
    as_json: bool,
) -> None:
    """At full size; libvips streams the tiles into the file."""
    store = open_image(image, settings)
    manifest = published_image(store)
    targets = export_targets(manifest, target, force)
    signing = _signing(manifest, targets, publish_prompt, force, settings)
    retrying = open_image(image, settings, patience_s=READ_PATIENCE_S)
    with (
        Progress(transient=True, disable=as_json, console=Console(stderr=True)) as progress,
        ExitStack() as stack,
    ):
        download = progress.add_task("downloading", total=None, visible=False)

        def on_download(done: int, total: int) -> None:
            progress.update(download, completed=done, total=total, visible=True)

        folder = stack.enter_context(local_tiles(retrying, manifest, on_download, beside=target.parent))
        task = progress.add_task("exporting", total=100 * len(targets))
        for number, (each, part) in enumerate(targets.items()):
            done = partial(_advance, progress, task, 100 * number)
            export_image(
                folder,
                manifest,
                each,
                part=part,
                quality=quality,
                publish_prompt=publish_prompt,
                force=force,
                on_progress=done,
                finish=None if signing is None else partial(signing.finish, target=each),
            )
    written = [*targets, *(() if signing is None else signing.sidecars)]
    if as_json:
        print_json({"files": [{"file": str(each), "bytes": each.stat().st_size} for each in written]})
        return
    for each in written:
        print_line(f"{each} ({size(each.stat().st_size)})")


def _signing(
    manifest: Manifest, targets: Iterable[Path], publish_prompt: bool, force: bool, settings: Settings
) -> FileSigning | None:
    """How the files are signed; None where no certificate is set. Raises `BadSetting`, `BadInput`."""
    if not settings.c2pa_certificate:
        return None
    from jobs.renditions.signed_files import FileSigning
    from jobs.renditions.signing import check_signer

    signer = check_signer(settings)
    assert signer is not None, "a certificate is set"
    signing = FileSigning(signer=signer, manifest=manifest, publish_prompt=publish_prompt)
    signing.check(targets, force)
    return signing


def _advance(progress: Progress, task: TaskID, before: int, per_cent: int) -> None:
    progress.update(task, completed=before + per_cent)
