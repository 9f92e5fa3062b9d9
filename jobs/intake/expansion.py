"""One row, many images: wildcards of its prompt, points of a grid, seeds and variations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jobs.intake.options import MAX_IMAGES_PER_ROW, IntakeOptions, is_random
from jobs.intake.template import expand_wildcards
from render.errors import BadInput
from render.spec import Spec, expand_size

_LARGEST_SEED = 2**63 - 1
_SHORT = re.compile(r"[A-Za-z0-9.+-]{1,20}")


class Expansion:
    """Makes the images of a row. The first seed and the first variation keep the row's custom id."""

    def __init__(self, options: IntakeOptions) -> None:
        self._options = options
        self._points = [(_point_name(options, point), expand_size(point)) for point in options.combinations]

    def images_of(
        self, custom_id: str, values: Mapping[str, Any], given: Collection[str] = ()
    ) -> Iterator[tuple[str, Spec]]:
        """(custom id, spec) of each image of a row with these values of a spec; `given` are its own ones.

        Raises `BadInput`.
        """
        prompt = values.get("prompt")
        prompts = expand_wildcards(prompt) if isinstance(prompt, str) else [prompt]
        count = len(prompts) * len(self._points) * self._options.seeds * self._options.variations
        if count > MAX_IMAGES_PER_ROW:
            fix = f"images are too many for one row; use at most {MAX_IMAGES_PER_ROW}"
            raise BadInput("prompt", count, fix)
        for number, each in enumerate(prompts, 1):
            choice = f"-p{number}" if len(prompts) > 1 else ""
            of_prompt = values if prompt is None else {**values, "prompt": each}
            for point_name, point in self._points:
                for name in point:
                    if name in given:
                        raise BadInput("grid", name, "is also given by this row; use one of them")
                yield from self._seeds_of(custom_id + choice + point_name, {**of_prompt, **point})

    def _seeds_of(self, custom_id: str, values: dict[str, Any]) -> Iterator[tuple[str, Spec]]:
        drawn = is_random(values.get("seed")) or (
            self._options.random_seed is not None and values.get("seed") is None
        )
        for number in range(self._options.seeds):
            if drawn:
                values["seed"] = self._draw(custom_id, number)
            elif number:
                values["seed"] = _next(values.get("seed"))
            name = custom_id if number == 0 else f"{custom_id}-s{number + 1}"
            yield from self._variations_of(name, Spec.from_mapping(values))

    def _variations_of(self, custom_id: str, spec: Spec) -> Iterator[tuple[str, Spec]]:
        """Variations of one composition. The first one is the image itself."""
        yield custom_id, spec
        for number in range(1, self._options.variations):
            changed = spec.with_changes(variation=spec.variation + number)
            yield f"{custom_id}-v{number + 1}", changed

    def _draw(self, custom_id: str, number: int) -> int:
        """A seed drawn for one image: the same each time that it is asked for with one base."""
        if self._options.random_seed is None:
            raise BadInput("seed", "random", "needs --seed random, which draws and records the seeds")
        text = f"{self._options.random_seed}/{custom_id}/{number}"
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big")


def _next(seed: Any) -> Any:
    """The seed after one; what is no seed is left for the spec to refuse."""
    if seed is None:
        return 1
    return (seed + 1) % (_LARGEST_SEED + 1) if isinstance(seed, int) else seed


def _point_name(options: IntakeOptions, point: Mapping[str, Any]) -> str:
    """What the custom id of a point of the grid has more than its row's, as `-steps20`."""
    name = ""
    for field, values in options.grid:
        text = str(point[field])
        name += f"-{field}{text if _SHORT.fullmatch(text) else values.index(point[field]) + 1}"
    return name
