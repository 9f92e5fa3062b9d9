"""An uploaded batch file, checked and queued: what the form and `POST /api/v1/batches` share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from jobs.announcement import job_announcer
from jobs.board.board import Board
from jobs.board.sent_files import as_named
from jobs.board.spec_form import entered_values
from jobs.board.uploads import Upload
from jobs.db.board_queries import is_known_folder
from jobs.db.nodes import farm_bfloat16
from jobs.db.submission import JobOptions, Preparation, Receipt, insert_batch
from jobs.farm import open_images
from jobs.input_assets import upload_inputs
from jobs.intake.batch import CheckedBatch, check_batch
from jobs.intake.batch_reader import BatchReader
from jobs.intake.open_table import ENDINGS
from jobs.intake.options import IntakeOptions, is_random, parse_options
from jobs.intake.raw_rows import Reading
from jobs.intake.row_images import RowImages
from render.errors import BadInput
from render.spec import Spec
from render.spec.enlarger import BUILTIN

TEXTS = ("template", "id_column", "map", "ignore", "encoding", "sheet", "grid", "seeds", "variations")
"""Fields of the form and of the request that say how rows become images."""
MAX_IMAGES = 100_000
"""Of one upload: a board has other work, too."""
LOCAL = frozenset(field.name for field in Spec.inputs() if field.shown.local)


def keep_upload(board: Board, file_name: str, file: BinaryIO) -> Upload:
    """Keep an uploaded file; raises `BadInput` for one that is no batch file by its ending."""
    name = Path(file_name.replace("\\", "/")).name[-200:]
    if Path(name).suffix.lower() not in ENDINGS:
        raise BadInput("file", name, f"has an unknown ending; use one of {', '.join(ENDINGS)}")
    return board.uploads.keep(name, file)


def take_batch(
    board: Board, upload: Upload, form: Mapping[str, Any], options: JobOptions, dry_run: bool
) -> tuple[CheckedBatch, Receipt | None]:
    """Check an uploaded batch; queue it if all its rows are good and this is no dry run.

    Raises `BadInput` for a file that is no batch; bad rows are in the result, without a receipt.
    """
    with ExitStack() as stack:
        names = stack.enter_context(board.sent.named(form.get("files") or ""))
        images = RowImages(board.farm.settings, None, cache(partial(_sent, board, names)))
        stack.enter_context(closing(images))
        prepared = stack.enter_context(Preparation(options, farm_bfloat16(board.farm.database)))
        reader = BatchReader(
            reading=Reading(
                path=upload.path, encoding=form.get("encoding") or None, sheet=form.get("sheet") or None
            ),
            options=intake_options(form),
            defaults=default_values(form, images if names else None),
            images=images,
        )
        try:
            checked = check_batch(reader, prepared, board.check_models, MAX_IMAGES)
        except BadInput as exc:
            # Named as the user knows it, not by its place on this machine.
            known = exc.value == str(upload.path)
            raise BadInput(exc.field, upload.name, exc.fix) if known else exc from exc
        checked.bad = [replace(row, problem=as_named(row.problem, names)) for row in checked.bad]
        checked.notes = [as_named(note, names) for note in checked.notes]
        if checked.bad or dry_run:
            return checked, None
        store_inputs = partial(upload_inputs, prepared.with_images, open_images(board.farm.settings))
        announce = job_announcer(board.farm)
        receipt = insert_batch(board.farm.database, prepared, upload.name, store_inputs)
    announce()
    board.uploads.drop(upload)
    return checked, receipt


def json_defaults(text: str) -> dict[str, Any]:
    """Fields of the spec that a request gives as one JSON object. Raises `BadInput`."""
    if not text.strip():
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadInput("defaults", text[:80], 'is not valid JSON; use e.g. {"steps": 20}') from exc
    if not isinstance(values, dict):
        raise BadInput("defaults", text[:80], 'is not names and values; use e.g. {"steps": 20}')
    return {"defaults": values, "seed": values.get("seed")}


def intake_options(form: Mapping[str, Any]) -> IntakeOptions:
    """How rows become images, from the texts of a form; lists have a line for each part."""
    return parse_options(
        template=form.get("template"),
        id_column=form.get("id_column"),
        column_map=(form.get("map") or "").splitlines(),
        ignore=form.get("ignore") or "",
        grid=(form.get("grid") or "").splitlines(),
        seeds=form.get("seeds"),
        seed=form.get("seed"),
        variations=form.get("variations"),
    )


def _sent(board: Board, names: Mapping[str, str], field: str, name: str) -> str | None:
    """The path of a file that came with a batch; a network for control pictures is a folder of the farm."""
    if field == "controlnet":
        with board.farm.database.read() as connection:
            return name if is_known_folder(connection, field, name) else None
    return names.get(name)


def default_values(form: Mapping[str, Any], sent: RowImages | None = None) -> dict[str, Any]:
    """What a form gives of a spec for rows without a value; not the prompt, and no number of variations.

    `sent` finds the files that came with it; without any, what needs one is refused.
    """
    own = {name: value for name, value in form.items() if name not in ("prompt", "variation")}
    given = dict(form.get("defaults") or {})
    for values in (own, given):
        if is_random(values.get("seed")):
            del values["seed"]
    if sent is not None:
        parsed = Spec.parse(given)
        return entered_values(own) | {name: sent.replaced(name, value) for name, value in parsed.items()}
    packaged = {"enlarger"} if given.get("enlarger") == BUILTIN else set()
    refused = next((name for name in given if name in LOCAL - packaged), None)
    if refused is not None:
        raise BadInput(refused, given[refused], "cannot be set on the board; use chorale submit")
    return entered_values(own) | Spec.parse(given)
