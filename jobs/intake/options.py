"""What a user says about a batch, parsed from the texts of flags, of a form or of a request."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from jobs.intake.cells import parse_cell
from jobs.intake.template import Template, fold
from render.errors import BadInput
from render.spec import Spec, expand_size

MAX_IMAGES_PER_ROW = 1000
CUSTOM_ID = "custom_id"
REQUIRE_TAG = "require_tag"
"""Column of the tags that the nodes of a row's job must have."""


@dataclass(frozen=True, kw_only=True)
class IntakeOptions:
    """How rows become images. The default is one image for each row, from the columns that a spec knows."""

    template: Template | None = None
    id_column: str | None = None
    """The column with the rows' custom ids; `custom_id` if None."""
    column_map: Mapping[str, str] = field(default_factory=dict)
    """Folded names of columns, and the names that they stand for."""
    ignored: frozenset[str] = frozenset()
    """Folded names of columns that are not fields of the spec, whatever their names."""
    grid: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """Fields and their values; a row is rendered with each combination."""
    seeds: int = 1
    random_seed: int | None = None
    """What the seeds of rows without one are drawn from; None for the default seed."""
    variations: int = 1

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """Values for each point of the grid."""
        names = [name for name, _ in self.grid]
        return [dict(zip(names, each, strict=True)) for each in product(*(values for _, values in self.grid))]


def parse_options(
    *,
    template: str | None = None,
    id_column: str | None = None,
    column_map: Iterable[str] = (),
    ignore: str = "",
    grid: Iterable[str] = (),
    seeds: int | str | None = None,
    seed: str | None = None,
    variations: int | str | None = None,
) -> IntakeOptions:
    """The options from texts; `seed` is only looked at for `random` (see `is_random`). Raises `BadInput`."""
    known = IntakeOptions(
        template=Template.parse(template) if template else None,
        id_column=id_column.strip() if id_column else None,
        column_map=dict(_mapped(text) for text in column_map if text.strip()),
        ignored=frozenset(fold(name) for name in ignore.split(",") if name.strip()),
        grid=tuple(_grid_line(text) for text in grid if text.strip()),
        seeds=_count("seeds", seeds),
        random_seed=_random_base(seed) if is_random(seed) else None,
        variations=_count("variations", variations),
    )
    _check_grid(known)
    return known


def is_random(seed: object) -> bool:
    """Whether a seed is `random`, or `random:NUMBER`, which draws the same seeds again."""
    return isinstance(seed, str) and seed.strip().lower().partition(":")[0] == "random"


def _random_base(seed: str | None) -> int:
    base = (seed or "").partition(":")[2].strip()
    if not base:
        return secrets.randbits(32)
    if not (base.isascii() and base.isdigit() and len(base) <= 20):
        raise BadInput("seed", seed, "is not random or random:NUMBER; use e.g. random:7")
    return int(base)


def _mapped(text: str) -> tuple[str, str]:
    column, _, target = text.rpartition("=")
    if not (column.strip() and target.strip()):
        raise BadInput("map", text, "is not COLUMN=NAME; use e.g. Colour=color")
    return fold(column), fold(target)


def _grid_line(text: str) -> tuple[str, tuple[Any, ...]]:
    name, _, values = text.partition("=")
    fields = {field.name: field for field in Spec.inputs()}
    known = fields.get(fold(name))
    if known is None or known.kind in (list, object) or known.name == "prompt":
        raise BadInput("grid", text, "is not FIELD=VALUE,VALUE of the spec; use e.g. steps=20,30")
    found = [parse_cell(known, value.strip()) for value in values.split(",") if value.strip()]
    if not found:
        raise BadInput("grid", text, f"has no values; use e.g. {known.name}=VALUE,VALUE")
    return known.name, tuple(dict.fromkeys(found))


def _check_grid(options: IntakeOptions) -> None:
    names = [name for name, _ in options.grid]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput("grid", twice, "is there twice; write its values in one, e.g. steps=20,30")
    count = options.seeds * options.variations
    for _, values in options.grid:
        count *= len(values)
    if count > MAX_IMAGES_PER_ROW:
        raise BadInput("grid", count, f"images for each row are too many; use at most {MAX_IMAGES_PER_ROW}")
    for values_of_one in options.combinations:
        expand_size(values_of_one)


def _count(name: str, value: int | str | None) -> int:
    text = "1" if value in (None, "") else str(value).strip()
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_IMAGES_PER_ROW):
        raise BadInput(name, value, f"is not a whole number from 1 to {MAX_IMAGES_PER_ROW}")
    return int(text)
