"""The renditions of a batch's finished images: named before anything is written, made by several threads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, select

from infra.store.base import Store
from infra.store.local import LocalStore
from jobs.db.custom_ids import base_of
from jobs.db.folders import FINISHED_FOLDER
from jobs.db.reviews import review_counts, review_rows
from jobs.db.tables import entries, jobs
from jobs.download import local_tiles
from jobs.image_store import published_image
from jobs.renditions.channel import CONTENT_TYPES, ENDINGS, Rendition, Rules
from jobs.renditions.check import RuleResult, check_rendition
from jobs.renditions.claim import changes_of, claim_of
from jobs.renditions.maker import Sign, make_rendition
from jobs.renditions.names import FIELDS, check_unique, file_name
from jobs.renditions.signing import Signer
from render.errors import BadInput
from render.output.encode import published_parameters
from render.output.export import in_srgb8, joined_image
from render.output.manifest import Manifest
from render.spec import TRAINED


@dataclass(frozen=True, kw_only=True)
class BatchImage:
    """A finished image, of a batch or on its own."""

    row: int
    custom_id: str
    base_id: str
    """The custom_id of its row in the file: without the `-s2` or `-v2` of a further seed or variation."""
    n: int
    """Its number among the images of one base_id, from 1."""
    job: str
    seed: int
    folder: str = ""
    """In the farm's store."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A rendition that was written."""

    image: BatchImage
    file: Path
    bytes: int
    results: list[RuleResult]

    @property
    def passes(self) -> bool:
        """Whether it keeps all rules of its channel."""
        return all(result.passes for result in self.results)


@dataclass(frozen=True, kw_only=True)
class Output:
    """How the files of an export are made."""

    rendition: Rendition
    rules: Rules
    signer: Signer | None = None
    """None leaves the files unsigned."""
    publish_prompt: bool = False
    """Whether the files hold the prompts."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The images of a batch that are exported, and how many of its rows are not."""

    images: list[BatchImage]
    missing: int
    """Rows without a finished image."""
    not_kept: int = 0
    """Finished images that were left out, because reviewers have not kept them."""


def choose_images(connection: Connection, batch: str, everything: bool = False) -> Chosen:
    """The finished images of a batch by row: those that were kept, once it has been reviewed.

    Of a batch that nobody has reviewed, and with `everything`, they are all of them. Raises `BadInput`.
    """
    counts = review_counts(connection, batch)
    found, missing = _finished_images(connection, batch)
    if everything or not any(counts[name] for name in ("kept", "rejected", "disputed")):
        return Chosen(images=found, missing=missing)
    kept = {row["custom_id"] for row in review_rows(connection, batch, chosen="kept")}
    images = [image for image in found if image.custom_id in kept]
    return Chosen(images=images, missing=missing, not_kept=len(found) - len(images))


def _finished_images(connection: Connection, batch: str) -> tuple[list[BatchImage], int]:
    rows = batch_images(connection, batch)
    found = [image for image, state in rows if state == "done"]
    return found, len(rows) - len(found)


def batch_images(connection: Connection, batch: str) -> list[tuple[BatchImage, str]]:
    """The images of a batch by row, finished or not, each with the state of its job."""
    columns = (jobs.c.id, jobs.c.state, jobs.c.spec["seed"].as_string().label("seed"))
    statement = (
        select(entries.c.row, entries.c.custom_id, *columns, FINISHED_FOLDER.label("folder"))
        .join(jobs, jobs.c.id == entries.c.job)
        .where(entries.c.batch == batch)
        .order_by(entries.c.row)
    )
    rows = list(connection.execute(statement))
    known = {row.custom_id for row in rows}
    found, counts = [], Counter[str]()
    for row in rows:
        base = base_of(row.custom_id, known)
        counts[base] += 1
        image = BatchImage(
            row=row.row,
            custom_id=row.custom_id,
            base_id=base,
            n=counts[base],
            job=row.id,
            seed=int(row.seed or 0),
            folder=row.folder,
        )
        found.append((image, row.state))
    return found


def name_files(
    images: Sequence[BatchImage], template: str, wanted: Rendition, channel: str, force: bool
) -> dict[Path, BatchImage]:
    """The file of each image. Raises `BadInput` for two images with one file, and for files that exist."""
    taken: dict[Path, str] = {}
    targets: dict[Path, BatchImage] = {}
    ending = f".{ENDINGS[wanted.format]}"
    for image in images:
        values = {name: getattr(image, name) for name in FIELDS if name != "channel"}
        target = Path(file_name(template, values | {"channel": channel}))
        if target.suffix.lower() not in (
            ending,
            ending.replace("jpg", "jpeg"),
            ending.replace("tif", "tiff"),
        ):
            target = target.with_name(target.name + ending)
        check_unique(taken, Path(str(target).casefold()), image.custom_id)
        taken[Path(str(target).casefold())] = image.custom_id
        targets[target] = image
    existing = [target for target in targets if target.exists()]
    if existing and not force:
        problem = f"exists, and {len(existing) - 1} more do; use --force to replace them"
        if len(existing) == 1:
            problem = "exists; use --force to replace it"
        raise BadInput("target", str(existing[0]), problem)
    return targets


def make_all(
    targets: dict[Path, BatchImage],
    store_of: Callable[[BatchImage], Store],
    output: Output,
    on_done: Callable[[Made], None],
) -> None:
    """Make every file, from the image in the store that `store_of` gives. Files are whole or not there."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        work = [pool.submit(_make, file, image, store_of(image), output) for file, image in targets.items()]
        try:
            for future in work:
                on_done(future.result())
        finally:
            for future in work:
                future.cancel()


def rendition_of(
    image: Store, wanted: Rendition, signer: Signer | None, *, publish_prompt: bool = False
) -> tuple[bytes, Manifest]:
    """A finished image as one file, signed if there is a signer, and its manifest.

    The prompts are in the file only with `publish_prompt`. Raises `BadInput`, `StoreError`, `RenderFailed`,
    and what `Signer.signed` does.
    """
    manifest = published_image(image)
    parameters = published_parameters(manifest.spec, prompt=True) if publish_prompt else None
    with local_tiles(image, manifest) as folder:
        whole = 0, 0, manifest.width, manifest.height
        source = in_srgb8(joined_image(folder, manifest, whole), manifest)
        sign = None if signer is None else _signing(signer, manifest, wanted, publish_prompt)
        source_type = manifest.spec.get("source_type", TRAINED)
        data = make_rendition(source, wanted, source_type, parameters=parameters, sign=sign)
        return data, manifest


def _signing(signer: Signer, manifest: Manifest, wanted: Rendition, publish_prompt: bool) -> Sign:
    content_type = CONTENT_TYPES[wanted.format]
    changes = changes_of(wanted, manifest.width, manifest.height)
    claim = claim_of(manifest, format=content_type, publish_prompt=publish_prompt, changes=changes)
    return partial(signer.signed, format=content_type, claim=claim)


def _make(file: Path, image: BatchImage, found: Store, output: Output) -> Made:
    data, manifest = rendition_of(
        found, output.rendition, output.signer, publish_prompt=output.publish_prompt
    )
    wanted, rules = output.rendition, output.rules
    LocalStore(file.parent).put(file.name, data, CONTENT_TYPES[wanted.format])
    results = check_rendition(data, rules, (manifest.width, manifest.height))
    return Made(image=image, file=file, bytes=len(data), results=results)
