"""`chorale submit`: add one image or a batch to a queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from jobs.batches import ENDINGS, BadRow, BatchReader, batch_items, check_batch
from jobs.cli.farm_options import farm_options, whoami
from jobs.cli.help import examples
from jobs.cli.spec_options import given_values, spec_options
from jobs.cli.terminal import print_json, print_line
from jobs.db.submission import BatchItem, JobOptions, Receipt, expand_variations, parse_moment, submit
from jobs.farm import Farm, open_images
from jobs.formatting import plural
from jobs.input_assets import upload_inputs
from jobs.ranks import parse_ranks
from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.plan.plan import make_plan
from render.spec import Spec

_SHOWN = 20
"""Maximum number of invalid rows that are printed; the errors file holds all."""


@click.command(
    name="submit",
    epilog=examples(
        'chorale submit "a red vase on marble" --size 2048x2048 --queue overnight',
        'chorale submit examples/catalog.csv --template "a {color} {product} {place}" --size 512x512',
    ),
)
@spec_options
@click.option("--queue", default="default", show_default=True, help="Queue of the jobs.")
@click.option("--owner", default=None, help="Owner of the jobs. [your login name]")
@click.option("--priority", type=click.IntRange(0, 100), default=None, help="Priority. [the queue's]")
@click.option("--ranks", default="auto", show_default=True, help="Ranks per job, or auto.")
@click.option("--not-before", default=None, help="Earliest start, e.g. 2026-11-21T22:00+01:00.")
@click.option("--deadline", default=None, help="Latest end, e.g. 2026-11-22T07:00+01:00.")
@click.option(
    "--template", default=None, help="Prompt of every row, with {COLUMN} for a column of the batch."
)
@click.option("--ignore", default="", help="Columns of the batch to ignore, separated by commas.")
@click.option(
    "--variations",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Number of variations of each image: same composition, different details.",
)
@click.option("--skip-bad", is_flag=True, help="Submit the valid rows of a batch that has invalid ones.")
@click.option("--dry-run", is_flag=True, help="Check everything and submit nothing.")
@farm_options
def submit_command(
    farm: Farm,
    as_json: bool,
    template: str | None,
    ignore: str,
    variations: int,
    skip_bad: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Submit one image, or every row of a batch file.

    PROMPT is a prompt, or a .csv, .jsonl or .yaml file with one image per row. An image that was submitted
    before is not rendered again. If a row is invalid, nothing is submitted; with --skip-bad the valid rows
    are, and the invalid ones are written to FILE.errors.jsonl.
    """
    job_options = _job_options(options)
    source = Path(options["prompt"] or "")
    if source.suffix.lower() in ENDINGS:
        options["prompt"] = None
        ignored = frozenset(name.strip() for name in ignore.split(",") if name.strip())
        reader = BatchReader(path=source, template=template, defaults=given_values(options), ignored=ignored)
        good, bad = check_batch(reader)
        if bad and not skip_bad:
            raise _bad_rows(source, bad, as_json)
        items: Iterator[BatchItem] = batch_items(reader)
        name = source.name
    else:
        spec = Spec.from_mapping(given_values(options))
        make_plan(spec, model_info(find_model_paths(spec.model, spec.refiner)), 1)
        items = iter([BatchItem(row=1, custom_id="image", spec=spec)])
        good, bad, name = 1, [], spec.prompt[:80]
    if variations > 1:
        items, good = expand_variations(items, variations), good * variations
    if dry_run:
        _print({"rows": good, "bad": len(bad), "dry_run": True}, as_json)
        return
    receipt = submit(farm.database, upload_inputs(items, open_images(farm.settings)), name, job_options)
    _write_errors(source, bad)
    _print({"rows": good, "bad": len(bad), "queue": job_options.queue, **asdict(receipt)}, as_json)


def _job_options(options: dict[str, Any]) -> JobOptions:
    return JobOptions(
        owner=options.pop("owner") or whoami(),
        queue=options.pop("queue"),
        priority=options.pop("priority"),
        ranks=parse_ranks(options.pop("ranks")),
        not_before=parse_moment("not_before", options.pop("not_before")),
        deadline=parse_moment("deadline", options.pop("deadline")),
    )


def _bad_rows(source: Path, bad: list[BadRow], as_json: bool) -> BadInput:
    if not as_json:
        for row in bad[:_SHOWN]:
            print_line(f"chorale: {source.name}, line {row.line}: {row.problem}", error=True)
        if len(bad) > _SHOWN:
            print_line(f"chorale: and {len(bad) - _SHOWN:,} more", error=True)
    first = f"line {bad[0].line}: {bad[0].problem}"
    return BadInput(
        "batch",
        str(source),
        f"has {plural(len(bad), 'bad row')} ({first}); nothing was submitted, fix them or use --skip-bad",
    )


def _write_errors(source: Path, bad: list[BadRow]) -> None:
    if not bad:
        return
    target = source.with_name(source.name + ".errors.jsonl")
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad)
    target.write_text("".join(lines), encoding="utf-8")
    print_line(f"chorale: {plural(len(bad), 'bad row')} written to {target}", error=True)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
    elif result.get("dry_run"):
        skipped = f"; {plural(result['bad'], 'bad row')} skipped" if result["bad"] else ""
        print_line(f"OK: {plural(result['rows'], 'image')} would be queued{skipped}")
    else:
        receipt = Receipt(**{name: result[name] for name in ("batch", "new", "known", "done")})
        text = f"Batch {receipt.batch} in queue {result['queue']}: {plural(receipt.new, 'new job')}"
        if receipt.known:
            text += f", {receipt.known:,} submitted before ({receipt.done:,} of them done)"
        print_line(text)
