"""A tqdm bar over the denoising steps of one image, or of several, as diffusers shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from render.events import Event, ImageDone, StageStarted, StepDone, TilesWritten
from render.plan.stages import Stage


class ProgressBar:
    """A context manager with an `OnEvent`. `config` are tqdm's own arguments, such as `disable=True`."""

    def __init__(self, stages: Sequence[Stage], config: Mapping[str, Any], images: int = 1) -> None:
        """`stages` are those of each of so many images, which are rendered in one request."""
        steps = [stage.steps - stage.first_step for stage in stages]
        self._before = [sum(steps[:number]) for number in range(len(steps))]
        self._blocks: dict[int, tuple[int, int]] = {}
        self._images, self._steps, self._finished = images, dict[int, int](), 0
        total = sum(steps) * images
        self._bar = tqdm(**{"total": total, "unit": "step", "desc": "loading the model", **config})

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepDone):
            # Not by one: a render that resumes from a checkpoint starts in the middle.
            self._steps[event.image] = self._before[event.stage] + event.step
            self._bar.update(sum(self._steps.values()) - self._bar.n)
        if self._images > 1:
            self._finished += isinstance(event, ImageDone)
            self._bar.set_description(f"image {self._finished}/{self._images}")
            return
        match event:
            case StageStarted():
                self._bar.set_description(f"stage {event.stage + 1}/{event.stages}")
            case TilesWritten():
                self._blocks[event.rank] = event.blocks_done, event.blocks_total
                done, total = (sum(pair[part] for pair in self._blocks.values()) for part in (0, 1))
                self._bar.set_description(f"decoding {done}/{total}")
            case ImageDone():
                self._bar.set_description("done")
