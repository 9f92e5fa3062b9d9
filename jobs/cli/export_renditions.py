"""`chorale export` where files are made for a channel or of another size: one image, or those of a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from infra.settings import Settings
from infra.store.base import Store
from infra.store.local import LocalStore
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.farm import open_farm, open_images
from jobs.formatting import plural, size
from jobs.image_source import open_image
from jobs.image_store import READ_PATIENCE_S, published_image
from jobs.renditions.batch import BatchImage, Made, Output, choose_images, make_all, name_files
from jobs.renditions.names import has_fields
from jobs.renditions.options import Wanted
from jobs.renditions.signing import check_signer
from render.errors import BadInput

_SHOWN = 20
"""Files with broken rules that are printed; the report has all."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """What an export has written."""

    made: list[Made]
    missing: int = 0
    """Rows of the batch without a finished image."""
    not_kept: int = 0
    """Finished images that reviewers have not kept."""


def export_one(
    image: str, target: str, wanted: Wanted, force: bool, settings: Settings, publish_prompt: bool = False
) -> Files:
    """One image, given as `jobs.image_source` takes it, as one file."""
    output = _output(wanted, settings, publish_prompt)
    store = open_image(image, settings, patience_s=READ_PATIENCE_S)
    manifest = published_image(store)
    seed = manifest.spec.get("seed", 0)
    name = Path(image).name
    one = BatchImage(row=1, custom_id=name, base_id=name, n=1, job=manifest.digest[:16], seed=seed)
    return _make([one], wanted.template(target), wanted, output, force, lambda _: store)


def export_batch(
    batch: str,
    target: str,
    wanted: Wanted,
    force: bool,
    settings: Settings,
    everything: bool = False,
    publish_prompt: bool = False,
) -> Files:
    """The images of a batch, one file each; once it has been reviewed, those that were kept."""
    output = _output(wanted, settings, publish_prompt)
    with open_farm(settings) as farm, farm.database.read() as connection:
        chosen = choose_images(connection, batch, everything)
    images = chosen.images
    if not images:
        problem = f"has no finished image yet ({plural(chosen.missing, 'row')} to go); wait for it"
        if chosen.not_kept:
            left = plural(chosen.not_kept, "finished image")
            problem = f"has {left}, and none is kept; use chorale review, or --all"
        raise BadInput("batch", batch, problem)
    template = wanted.template(target)
    if len(images) > 1 and not has_fields(template):
        raise BadInput("target", target, f"names one file for {len(images)} images; add e.g. {{custom_id}}")
    store = open_images(settings, patience_s=READ_PATIENCE_S)
    made = _make(images, template, wanted, output, force, lambda image: store.within(image.folder))
    return Files(made=made.made, missing=chosen.missing, not_kept=chosen.not_kept)


def _output(wanted: Wanted, settings: Settings, publish_prompt: bool) -> Output:
    """Raises `BadSetting` before anything is written, where files are to be signed and cannot be."""
    signer = check_signer(settings)
    return Output(
        rendition=wanted.rendition, rules=wanted.rules, signer=signer, publish_prompt=publish_prompt
    )


def _make(
    images: list[BatchImage],
    template: str,
    wanted: Wanted,
    output: Output,
    force: bool,
    store_of: Callable[[BatchImage], Store],
) -> Files:
    channel = "" if wanted.channel is None else wanted.channel.name
    targets = name_files(images, template, wanted.rendition, channel, force)
    made: list[Made] = []
    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), transient=True, console=Console(stderr=True)
    ) as progress:
        task = progress.add_task("exporting", total=len(targets))

        def on_done(each: Made) -> None:
            made.append(each)
            progress.advance(task)

        make_all(targets, store_of, output, on_done)
    return Files(made=made)


def print_files(files: Files, report: Path | None, as_json: bool) -> None:
    """Print what was written and which rules are broken; also as JSON lines into the report."""
    if report is not None:
        lines = "".join(json.dumps(_document(made), ensure_ascii=False) + "\n" for made in files.made)
        LocalStore(report.parent).put(report.name, lines.encode(), "application/jsonl")
    broken = [made for made in files.made if not made.passes]
    if as_json:
        documents = [_document(made) for made in files.made]
        counts = {"broken": len(broken), "missing": files.missing, "not_kept": files.not_kept}
        print_json({"files": documents, **counts})
        return
    total = sum(made.bytes for made in files.made)
    first = files.made[0].file
    where = str(first) if len(files.made) == 1 else f"{plural(len(files.made), 'file')} in {first.parent}"
    print_line(f"{where} ({size(total)})")
    if files.missing:
        print_line(f"{plural(files.missing, 'row')} of the batch without a finished image left out")
    if files.not_kept:
        print_line(
            f"{plural(files.not_kept, 'image')} that reviewers have not kept left out; --all exports them"
        )
    results = [(made, result) for made in broken for result in made.results if not result.passes]
    rows = [(made.file.name, each.rule, each.wanted, each.found) for made, each in results[:_SHOWN]]
    if rows:
        print_table("broken rules", ("file", "rule", "wanted", "found"), rows)
        if len(results) > _SHOWN:
            print_line(f"and {len(results) - _SHOWN} more; --report FILE writes all")
    elif any(made.results for made in files.made):
        print_line(f"All rules kept ({len(files.made[0].results)} for each file)")


def _document(made: Made) -> dict[str, Any]:
    image = made.image
    return {
        "file": str(made.file),
        "custom_id": image.custom_id,
        "n": image.n,
        "job": image.job,
        "bytes": made.bytes,
        "passes": made.passes,
        "rules": [asdict(result) for result in made.results],
    }
