"""The progress of a node's ranks, put together from their events for the people who watch the farm."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from render.events import Event, StageStarted, StepDone, StepTimed, TilesWritten


class ProgressSnapshot:
    """The state of one attempt on one node, as JSON types; seconds are sums over the attempt so far."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._ranks: dict[str, dict[str, Any]] = {}
        self._first: tuple[float, float] | None = None

    def update(self, event: Event, progress: float | None) -> dict[str, Any]:
        """Take an event of a rank, and return all that is known now."""
        match event:
            case StageStarted():
                self._values |= {
                    "stage": event.stage,
                    "stages": event.stages,
                    "width": event.width,
                    "height": event.height,
                    "steps": event.steps,
                    "step": 0,
                }
            case StepDone():
                self._values |= {"stage": event.stage, "step": event.step, "steps": event.steps}
                self._values["step_seconds"] = event.seconds
                self._values["seconds_left"] = self._seconds_left(progress)
                self._add_phases(event.rank, event.phases)
            case StepTimed():
                self._add_phases(event.rank, event.phases)
            case TilesWritten():
                self._rank(event.rank)["blocks"] = [event.blocks_done, event.blocks_total]
                self._values["seconds_left"] = None
        # A new dictionary each time: another thread writes it into the database.
        return self._values | {"ranks": {name: dict(rank) for name, rank in self._ranks.items()}}

    def _rank(self, rank: int) -> dict[str, Any]:
        return self._ranks.setdefault(str(rank), {"phases": {}})

    def _add_phases(self, rank: int, phases: Mapping[str, float]) -> None:
        sums = self._rank(rank)["phases"]
        for phase, seconds in phases.items():
            sums[phase] = round(sums.get(phase, 0.0) + seconds, 3)

    def _seconds_left(self, progress: float | None) -> float | None:
        """From the pace since the first step; None until there are two."""
        if progress is None:
            return None
        now = time.monotonic()
        started, progress_then = self._first = self._first or (now, progress)
        if progress <= progress_then:
            return None
        return (1 - progress) * (now - started) / (progress - progress_then)
