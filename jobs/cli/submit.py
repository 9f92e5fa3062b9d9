"""`chorale submit`: one image or a whole batch into a queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from jobs.batches import ENDINGS, BadRow, BatchReader, batch_items, check_batch
from jobs.cli.farm_options import farm_options, print_json, whoami
from jobs.cli.spec_options import given_values, spec_options
from jobs.db.submission import (
    BatchItem,
    JobOptions,
    Receipt,
    expand_variations,
    parse_moment,
    parse_ranks,
    submit,
)
from jobs.farm import Farm, open_images
from jobs.input_assets import upload_inputs
from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.spec import Spec

_SHOWN = 20
"""Bad rows that are printed; --json and the errors file hold all."""


@click.command(
    name="submit",
    epilog='Examples: chorale submit "a red vase on marble" --size 2048x2048 --queue overnight; '
    'chorale submit examples/catalog.csv --template "a {color} {product} {place}" --size 512x512',
)
@spec_options
@click.option("--queue", default="default", show_default=True, help="Queue to put the jobs into.")
@click.option("--owner", default=None, help="Whose jobs these are. [you]")
@click.option("--priority", type=click.IntRange(0, 100), default=None, help="Instead of the queue's own.")
@click.option("--ranks", default="auto", show_default=True, help="Ranks of each group, or auto.")
@click.option("--not-before", default=None, help="Earliest start, e.g. 2026-11-21T22:00+01:00.")
@click.option("--deadline", default=None, help="When it should be done, e.g. 2026-11-22T07:00+01:00.")
@click.option("--template", default=None, help="Writes a batch's prompts from its columns.")
@click.option("--ignore", default="", help="Columns of a batch to leave out, with commas between.")
@click.option(
    "--variations",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Queue each image so many times: one composition, other finishes.",
)
@click.option("--skip-bad", is_flag=True, help="Queue the good rows of a batch that has bad ones.")
@click.option("--dry-run", is_flag=True, help="Check everything, queue nothing.")
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
    """Queue an image (PROMPT or --spec), or every row of a batch file (.csv, .jsonl, .yaml).

    The same image asked for twice is rendered once. With a bad row in a batch nothing is queued, unless
    --skip-bad is given; then the bad rows go to FILE.errors.jsonl.
    """
    terms = _terms(options)
    source = Path(options["prompt"] or "")
    if source.suffix.lower() in ENDINGS:
        options["prompt"] = None
        ignored = frozenset(name.strip() for name in ignore.split(",") if name.strip())
        reader = BatchReader(path=source, template=template, defaults=given_values(options), ignored=ignored)
        good, bad = check_batch(reader)
        if bad and not skip_bad:
            raise _refusal(source, bad, as_json)
        asked: Iterator[BatchItem] = batch_items(reader)
        name = source.name
    else:
        spec = Spec.from_mapping(given_values(options))
        model_info(find_model_paths(spec.model, spec.refiner))
        asked, good, bad, name = (
            iter([BatchItem(row=1, custom_id="image", spec=spec)]),
            1,
            [],
            spec.prompt[:80],
        )
    if variations > 1:
        asked, good = expand_variations(asked, variations), good * variations
    if dry_run:
        _say({"rows": good, "bad": len(bad), "dry_run": True}, as_json)
        return
    receipt = submit(farm.database, upload_inputs(asked, open_images(farm.settings)), name, terms)
    _write_errors(source, bad)
    _say({"rows": good, "bad": len(bad), "queue": terms.queue, **asdict(receipt)}, as_json)


def _terms(options: dict[str, Any]) -> JobOptions:
    return JobOptions(
        owner=options.pop("owner") or whoami(),
        queue=options.pop("queue"),
        priority=options.pop("priority"),
        ranks=parse_ranks(options.pop("ranks")),
        not_before=parse_moment("not_before", options.pop("not_before")),
        deadline=parse_moment("deadline", options.pop("deadline")),
    )


def _refusal(source: Path, bad: list[BadRow], as_json: bool) -> BadInput:
    if not as_json:
        for row in bad[:_SHOWN]:
            click.echo(f"chorale: {source.name}, line {row.line}: {row.problem}", err=True)
        if len(bad) > _SHOWN:
            click.echo(f"chorale: and {len(bad) - _SHOWN} more", err=True)
    first = f"line {bad[0].line}: {bad[0].problem}"
    return BadInput(
        "batch",
        str(source),
        f"has {len(bad)} bad rows ({first}); nothing was queued, mend them or --skip-bad",
    )


def _write_errors(source: Path, bad: list[BadRow]) -> None:
    if not bad:
        return
    target = source.with_name(source.name + ".errors.jsonl")
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad)
    target.write_text("".join(lines), encoding="utf-8")
    click.echo(f"chorale: {len(bad)} bad rows are in {target}", err=True)


def _say(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
    elif result.get("dry_run"):
        click.echo(f"All is well: {result['rows']} images could be queued, {result['bad']} rows are bad")
    else:
        receipt = Receipt(**{name: result[name] for name in ("batch", "new", "known", "done")})
        text = f"batch {receipt.batch} in queue {result['queue']}: {receipt.new} new"
        if receipt.known:
            text += f", {receipt.known} known already ({receipt.done} of them done)"
        click.echo(text)
