"""A whole submission, checked: a batch file or one image, ready to be queued or refused as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.db.submission import BatchItem, Preparation
from jobs.formatting import plural
from jobs.intake.batch_reader import BadRow, BatchReader, Row
from jobs.intake.error_report import error_lines
from jobs.intake.expansion import Expansion
from jobs.intake.options import IntakeOptions
from render.errors import BadInput
from render.models.model_paths import find_model_paths, model_info
from render.models.prompt_limits import dropped_prompts, may_be_long, weights_note
from render.spec.prompt_text import has_weights

_PREVIEWED = 3
_SHOWN_LONG = 5
"""Prompts of a batch that are named because the model does not read their end; the others are counted."""
ModelCheck = Callable[[str, str | None, str | None, str | None], None]
"""Takes `Spec.model_names`; raises `BadInput` for a model, or what belongs to it, that cannot be used."""


@dataclass(kw_only=True)
class CheckedBatch:
    """What a submission comes to; its images are in a `Preparation`."""

    images: int = 0
    bad: list[BadRow] = field(default_factory=list)
    preview: list[dict[str, Any]] = field(default_factory=list)
    """The first images: `custom_id`, `prompt`, `width`, `height`, `seed`, `steps`."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: how the file was read, what was ignored, images that are the same."""
    long_prompts: int = 0
    """Prompts whose end the model does not read."""
    same: int = 0
    """Images that are the same as another one of the batch."""

    def refusal(self, name: str, fix: str) -> BadInput:
        """The bad rows in one sentence, for a batch that is refused."""
        first = error_lines(self.bad)[0]
        return BadInput("batch", name, f"has {plural(len(self.bad), 'bad row')} ({first}); {fix}")


def check_batch(
    reader: BatchReader,
    prepared: Preparation,
    check_models: ModelCheck | None = None,
    most: int | None = None,
) -> CheckedBatch:
    """Read a batch file once, and add its good images to `prepared`.

    Raises `BadInput` for a file that cannot be read as a batch, for one without rows, and for one with more
    than `most` images and bad rows.
    """
    checked = CheckedBatch()
    _add(_limited(reader, most), prepared, _remembered(check_models or check_model_folders), checked)
    if not (checked.images or checked.bad):
        raise BadInput("batch", str(reader.reading.path), "has no rows; write one per image")
    _finish(checked, prepared, reader.options, reader.notes)
    return checked


def check_single(
    values: Mapping[str, Any],
    options: IntakeOptions,
    prepared: Preparation,
    check_models: ModelCheck | None = None,
) -> CheckedBatch:
    """Add the images of one prompt to `prepared`; raises `BadInput` if any cannot be rendered."""
    checked = CheckedBatch()
    images = Expansion(options).images_of("image", values)
    rows = [Row(line=1, custom_id=custom_id, spec=spec) for custom_id, spec in images]
    check = _remembered(check_models or check_model_folders)
    for row in rows:
        _add_image(row, prepared, check, checked)
    _finish(checked, prepared, options, [])
    return checked


def check_model_folders(model: str, refiner: str | None, vae: str | None, base: str | None) -> None:
    """Raise `BadInput` for a model, or what belongs to it, that is not on this machine or cannot be used."""
    model_info(find_model_paths(model, refiner, vae, base))


def _limited(reader: BatchReader, most: int | None) -> Iterator[Row | BadRow]:
    for number, row in enumerate(reader):
        if most is not None and number >= most:
            fix = f"makes more than {most:,} images; divide it, or use chorale submit"
            raise BadInput("batch", str(reader.reading.path), fix)
        yield row


def _add(
    rows: Iterable[Row | BadRow], prepared: Preparation, check: ModelCheck, checked: CheckedBatch
) -> None:
    for row in rows:
        if isinstance(row, BadRow):
            checked.bad.append(row)
            continue
        try:
            _add_image(row, prepared, check, checked)
        except BadInput as exc:
            checked.bad.append(BadRow.of(row.line, row.custom_id, exc))


def _add_image(row: Row, prepared: Preparation, check: ModelCheck, checked: CheckedBatch) -> None:
    check(*row.spec.model_names)
    item = BatchItem(
        row=prepared.count + 1, custom_id=row.custom_id, spec=row.spec, require_tag=row.require_tag
    )
    prepared.add(item)
    checked.images += 1
    _note_prompts(row, checked)
    if len(checked.preview) < _PREVIEWED:
        names = ("prompt", "width", "height", "seed", "steps")
        shown = {name: getattr(row.spec, name) for name in names}
        checked.preview.append({"custom_id": row.custom_id, **shown})


def _note_prompts(row: Row, checked: CheckedBatch) -> None:
    prompts = row.spec.prompts
    if any(map(has_weights, prompts.values())):
        note = weights_note(find_model_paths(*row.spec.model_names).model, prompts.values())
        checked.notes += [note] if note and note not in checked.notes else []
    if not any(map(may_be_long, prompts.values())):
        return  # without looking for the model's folder
    for each in dropped_prompts(find_model_paths(*row.spec.model_names).model, prompts):
        checked.long_prompts += 1
        if checked.long_prompts <= _SHOWN_LONG:
            checked.notes.append(f"{row.custom_id}: {each}")


def _finish(
    checked: CheckedBatch, prepared: Preparation, options: IntakeOptions, notes: Iterable[str]
) -> None:
    checked.notes += notes
    if options.random_seed is not None:
        text = f"random:{options.random_seed}"
        checked.notes.append(f"seeds are drawn from {text}; --seed {text} draws the same ones again")
    if checked.long_prompts > _SHOWN_LONG:
        checked.notes.append(f"{checked.long_prompts:,} prompts in all are longer than the model reads")
    checked.same = prepared.twin_count
    if checked.same:
        pairs = ", ".join(f"{twin} as {first}" for twin, first in prepared.twins[:3])
        are = "image is" if checked.same == 1 else "images are"
        checked.notes.append(
            f"{checked.same:,} {are} the same as another one of the batch ({pairs}); "
            "give the rows a seed, or use --seed random"
        )


def _remembered(check: ModelCheck) -> ModelCheck:
    """Checks each model once, not once per row: it reads the model's folder."""
    problems: dict[tuple[str, str | None, str | None, str | None], BadInput | None] = {}

    def checked(model: str, refiner: str | None, vae: str | None, base: str | None) -> None:
        key = model, refiner, vae, base
        if key not in problems:
            try:
                check(*key)
                problems[key] = None
            except BadInput as exc:
                problems[key] = exc
        problem = problems[key]
        if problem is not None:
            raise BadInput(problem.field, problem.value, problem.fix)

    return checked
