"""How many images a slot renders at once, and which: by `--slot-images`, the plan and the memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, select

from infra.database import Database
from infra.errors import BadSetting
from jobs.db.records import Assignment
from jobs.db.submission import geometry
from jobs.db.tables import jobs, nodes
from render.errors import BadInput
from render.launch.request import weights_of
from render.model_info import ModelInfo
from render.models.model_paths import find_model_paths, model_info
from render.plan.plan import make_plan
from render.spec import Spec

AUTO = "auto"
MOST = 64


def parse_slot_images(text: str) -> int | None:
    """The setting `slot_images`: a number from 1 to 64, or None for `auto`. Raises `BadSetting`."""
    if text == AUTO:
        return None
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MOST:
        return int(text)
    raise BadSetting("slot_images", text, f"is neither a number from 1 to {MOST} nor auto; use e.g. 8")


@dataclass
class SlotImages:
    """What a slot may render beside the image of one part."""

    at_once: int
    info: ModelInfo
    weights: tuple[Any, ...]
    memory_bytes: int
    """Of the part's own image, above the loaded model: none that needs more may join."""
    _known: dict[str, bool] = field(default_factory=dict)
    """By job: whether its spec is alike."""

    def alike(self, connection: Connection, ids: Collection[str], *, started: bool = False) -> frozenset[str]:
        """Which of some queued jobs may join: small ones of the same model, LoRA and number format that have
        not failed yet. One that has is rendered alone, since it may be what ends the group. Of jobs that have
        `started`, those of the kind."""
        unknown = [id for id in ids if id not in self._known]
        if unknown:
            specs = select(jobs.c.id, jobs.c.spec).where(jobs.c.id.in_(unknown))
            self._known |= {row.id: self._is_alike(row.spec) for row in connection.execute(specs)}
        likely = [id for id in ids if self._known.get(id)]
        if started:
            return frozenset(likely)
        unfailed = select(jobs.c.id).where(jobs.c.id.in_(likely), jobs.c.attempts + jobs.c.losses == 0)
        return frozenset(connection.execute(unfailed).scalars())

    def _is_alike(self, spec: Mapping[str, Any]) -> bool:
        if weights_of(spec) != self.weights:
            return False
        try:
            images, memory_bytes = _plan(geometry(Spec.from_mapping(spec)), self.info)
        except BadInput:
            # Told when it is rendered alone.
            return False
        return images > 1 and memory_bytes <= self.memory_bytes


def images_of_slot(database: Database, part: Assignment, wanted: int | None) -> SlotImages | None:
    """What may be rendered beside a part's image; None for one that is rendered alone.

    That is a group of several slots, a large image, one that has failed before, and any where `wanted` is 1.
    None as `wanted` means auto. It may take long, where the model is fetched first. Raises `BadInput` for a
    model that is not here, and `ServiceError`.
    """
    if wanted == 1 or part.nodes > 1 or len(part.slots) > 1 or part.failures:
        return None
    spec = Spec.from_mapping(part.spec)
    info = model_info(find_model_paths(*spec.model_names))
    images, above = _plan(geometry(spec), info)
    if images > 1:
        images = wanted or min(images, _fitting(database, part, above))
    if images < 2:
        return None
    return SlotImages(at_once=images, info=info, weights=weights_of(part.spec), memory_bytes=above)


def _fitting(database: Database, part: Assignment, above: int) -> int:
    """The images for which the slot's memory suffices, as far as it is known."""
    with database.read() as connection:
        of_node = select(nodes.c.vram_bytes).where(nodes.c.name == part.node)
        slot: float | None = connection.execute(of_node).scalar()
        rank = connection.execute(select(jobs.c.memory).where(jobs.c.id == part.job)).scalar()
    if slot is None or not rank:
        return MOST
    weights = int(rank[0][1]) - above
    return int((slot - weights) // above)


@lru_cache(maxsize=256)
def _plan(spec: Spec, info: ModelInfo) -> tuple[int, int]:
    """(images at once that fill a joined call, bytes of each above the loaded model); a catalog has few
    geometries."""
    plan = make_plan(spec, info, 1)
    return plan.images_at_once, max(max(stage.memory_bytes) for stage in plan.stages)
