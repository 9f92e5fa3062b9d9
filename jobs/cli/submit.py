"""`chorale submit`: add one image or a batch to a queue."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from infra.settings import Settings
from jobs.announcement import job_announcer
from jobs.budgets import budget_notes
from jobs.cli.farm_options import farm_options, whoami
from jobs.cli.help import examples
from jobs.cli.spec_options import given_values, spec_options
from jobs.cli.terminal import print_json, print_line
from jobs.db.find_predecessors import find_predecessors
from jobs.db.nodes import farm_bfloat16
from jobs.db.submission import JobOptions, Preparation, insert_batch
from jobs.farm import Farm, open_images
from jobs.formatting import plural
from jobs.input_assets import upload_inputs
from jobs.intake.batch import CheckedBatch, check_batch, check_single
from jobs.intake.batch_reader import BatchReader
from jobs.intake.error_report import error_lines, grouped_errors
from jobs.intake.open_table import batch_file
from jobs.intake.options import IntakeOptions, is_random, parse_options
from jobs.intake.raw_rows import Reading
from jobs.intake.row_images import RowImages
from jobs.moments import parse_moment
from jobs.ranks import parse_ranks
from jobs.tags import parse_tags
from render.errors import BadInput

_SHOWN_JOBS = 10
Command = TypeVar("Command", bound=Callable[..., Any])


def intake_options(command: Command) -> Command:
    """Add the options that say how rows become images."""
    options = [
        click.option("--template", help="Prompt of every row, with {COLUMN} for a column of the batch."),
        click.option("--id-column", help="Column with the custom ids, e.g. SKU. [custom_id]"),
        click.option(
            "--map", "column_map", multiple=True, help="COLUMN=NAME, e.g. Colour=color; may repeat."
        ),
        click.option("--ignore", default="", help="Columns of the batch to ignore, separated by commas."),
        click.option("--encoding", help="Encoding of a text file, e.g. cp1252. [found]"),
        click.option("--sheet", help="Sheet of a workbook. [the first one]"),
        click.option(
            "--grid",
            multiple=True,
            help="FIELD=VALUE,VALUE: each image with each value, e.g. steps=20,30; may repeat.",
        ),
        click.option(
            "--seeds",
            type=click.IntRange(1, 1000),
            default=1,
            show_default=True,
            help="Number of images of each row, with its seed and the next ones.",
        ),
        click.option(
            "--variations",
            type=click.IntRange(1, 1000),
            default=1,
            show_default=True,
            help="Number of variations of each image: same composition, different details.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    name="submit",
    epilog=examples(
        'chorale submit "a red vase on marble" --size 2048x2048 --queue overnight',
        'chorale submit examples/catalog.csv --template "a {color} {product} {place}" --size 512x512',
        "chorale submit finals.csv --size 2048x2048 --queue night --after 8c1f00aa3b52",
        'chorale submit feed.xlsx --id-column SKU --template "a {Colour} {Title}" --seeds 2 --dry-run',
    ),
)
@spec_options
@click.option("--queue", default="default", show_default=True, help="Queue of the jobs.")
@click.option("--owner", default=None, help="Owner of the jobs. [your login name]")
@click.option("--priority", type=click.IntRange(0, 100), default=None, help="Priority. [the queue's]")
@click.option("--ranks", default="auto", show_default=True, help="Ranks per job, or auto.")
@click.option("--not-before", default=None, help="Earliest start, e.g. 22:00 or tomorrow 7am.")
@click.option("--deadline", default=None, help="Latest end, e.g. fri 7am or 2026-11-22T07:00+01:00.")
@click.option("--after", multiple=True, metavar="JOB|BATCH", help="Start when this is done; may repeat.")
@click.option(
    "--after-any",
    multiple=True,
    metavar="JOB|BATCH",
    help="Start when this has ended in any way.",
)
@click.option(
    "--channel", multiple=True, help="Have the farm make files for this channel (see export); may repeat."
)
@click.option(
    "--require-tag", multiple=True, metavar="TAG", help="Start only on nodes with this tag; may repeat."
)
@intake_options
@click.option("--skip-bad", is_flag=True, help="Submit the valid rows of a batch that has invalid ones.")
@click.option("--dry-run", is_flag=True, help="Check everything, show the first prompts and submit nothing.")
@farm_options
def submit_command(farm: Farm, as_json: bool, skip_bad: bool, dry_run: bool, **options: Any) -> None:
    """Submit one image, or every row of a batch file.

    PROMPT is a prompt, or a .csv, .tsv, .xlsx, .jsonl or .yaml file with one image per row. {red|blue} in a
    prompt makes an image of each alternative, and --seed random draws a seed for each image. An image that
    was submitted before is not rendered again. If a row is invalid, nothing is submitted; with --skip-bad
    the valid rows are, and the invalid ones are written to FILE.errors.jsonl. docs/CATALOG.md goes from a
    product feed to queued jobs.

    A job with --require-tag (or a column require_tag) starts only on nodes that have all these tags; chorale
    nodes shows the tags of each.

    Jobs that wait (--after) for one that failed or was cancelled stay queued, and say so; they start when it
    was retried and is done.
    """
    job_options, intake, reading = _job_options(farm, options), _intake(options), _reading(options)
    images = RowImages(farm.settings, reading.path.parent if reading else None)
    with Preparation(job_options, farm_bfloat16(farm.database)) as prepared, closing(images):
        values = given_values(options)
        if reading is None:
            checked = check_single(values, intake, prepared)
            name = str(values.get("prompt"))[:80]
        else:
            reader = BatchReader(reading=reading, options=intake, defaults=values, images=images)
            checked = check_batch(reader, prepared)
            name = reading.path.name
            if checked.bad and not (skip_bad and checked.images):
                raise _refused(checked, reading.path, as_json)
        result: dict[str, Any] = {"rows": checked.images, "bad": len(checked.bad), "same": checked.same}
        if dry_run:
            result |= {"dry_run": True, "preview": checked.preview, "notes": checked.notes}
            print_submission(result, as_json)
            return
        store_inputs = partial(upload_inputs, prepared.with_images, open_images(farm.settings))
        announce = job_announcer(farm)
        receipt = insert_batch(farm.database, prepared, name, store_inputs)
        announce()
    if reading is not None and checked.bad:
        _write_errors(reading.path, checked)
    notes = [*checked.notes, *budget_notes(farm, job_options.owner)]
    result |= {"queue": job_options.queue, "notes": notes, **receipt.to_dict()}
    print_submission(result, as_json)


def _job_options(farm: Farm, options: dict[str, Any]) -> JobOptions:
    return JobOptions(
        owner=options.pop("owner") or whoami(),
        queue=options.pop("queue"),
        priority=options.pop("priority"),
        ranks=parse_ranks(options.pop("ranks")),
        not_before=parse_moment("not_before", options.pop("not_before")),
        deadline=parse_moment("deadline", options.pop("deadline")),
        after=find_predecessors(farm.database, options.pop("after"), options.pop("after_any")),
        require_tag=parse_tags("require_tag", options.pop("require_tag")),
        channels=_channels(options.pop("channel"), farm.settings),
    )


def _channels(names: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    if not names:
        return {}
    # Its libraries take longer to import than most submissions to check.
    from jobs.renditions.farm import wanted_channels

    return wanted_channels(names, files=True, settings=settings)


def _intake(options: dict[str, Any]) -> IntakeOptions:
    """How rows become images; `--seed random` is taken out, since it is no seed."""
    names = ("template", "id_column", "column_map", "ignore", "grid", "seeds", "variations")
    seed = options["seed"]
    if is_random(seed):
        options["seed"] = None
    return parse_options(seed=seed, **{name: options.pop(name) for name in names})


def _reading(options: dict[str, Any]) -> Reading | None:
    """The batch file that the prompt names; None for words."""
    encoding, sheet = options.pop("encoding"), options.pop("sheet")
    path = batch_file(options["prompt"] or "")
    if path is None:
        return None
    options["prompt"] = None
    return Reading(path=path, encoding=encoding, sheet=sheet)


def _refused(checked: CheckedBatch, path: Path, as_json: bool) -> BadInput:
    for note in checked.notes:
        print_line(f"chorale: {path.name}: {note}", error=True)
    if as_json:
        print_json({"bad": len(checked.bad), "errors": grouped_errors(checked.bad)})
    else:
        for line in error_lines(checked.bad):
            print_line(f"chorale: {path.name}, {line}", error=True)
    fix = "nothing was submitted, fix them or use --skip-bad"
    if as_json:
        return checked.refusal(str(path), fix)
    return BadInput("batch", str(path), f"has {plural(len(checked.bad), 'bad row')}; {fix}")


def _write_errors(path: Path, checked: CheckedBatch) -> None:
    target = path.with_name(path.name + ".errors.jsonl")
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in checked.bad)
    target.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    print_line(f"chorale: {plural(len(checked.bad), 'bad row')} written to {target}", error=True)


def print_submission(result: dict[str, Any], as_json: bool) -> None:
    """Print what a submission, or a dry run of one, comes to."""
    if as_json:
        print_json(result)
        return
    for note in result["notes"]:
        print_line(f"chorale: {note}", error=True)
    if result.get("dry_run"):
        for image in result["preview"]:
            size = f"{image['width']}x{image['height']}, seed {image['seed']}, {image['steps']} steps"
            print_line(f"{image['custom_id']}: {image['prompt']} ({size})")
        skipped = f"; {plural(result['bad'], 'bad row')} skipped" if result["bad"] else ""
        print_line(f"OK: {plural(result['rows'], 'image')} would be queued{skipped}")
        return
    text = f"Batch {result['batch']} in queue {result['queue']}: {plural(result['new'], 'new job')}"
    if result["known"]:
        text += f", {result['known']:,} submitted before ({result['done']:,} of them done)"
    print_line(text)
    for each in result["jobs"][:_SHOWN_JOBS]:
        print_line(f"  {each['id']}  {each['custom_id']}")
    if len(result["jobs"]) > _SHOWN_JOBS:
        more = len(result["jobs"]) - _SHOWN_JOBS
        print_line(f"  and {more:,} more; chorale list --batch {result['batch']} shows them")
