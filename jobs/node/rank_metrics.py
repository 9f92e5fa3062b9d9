"""Turns a rank's events into metrics for its agent. The engine finds it by its name in the request."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from jobs.node.metrics_client import MetricsClient
from render.events import CheckpointSaved, Event, ImageDone, StageStarted, StepDone, TilesWritten
from render.launch.observer import RankContext
from render.sink import SinkCall

OBSERVER = "jobs.node.rank_metrics:observe_rank"
"""What a request names for its ranks to be measured."""


def observe_rank(context: RankContext) -> RankMetrics:
    """The `RankObserver` of a rank for one image."""
    return RankMetrics(client=_client(), context=context)


@cache
def _client() -> MetricsClient:
    """One for a process: what the socket had no room for waits for the next image."""
    return MetricsClient.from_environment()


@dataclass(frozen=True, kw_only=True)
class RankMetrics:
    """A `RankObserver` that counts what one rank does for one image."""

    client: MetricsClient
    context: RankContext

    def on_event(self, event: Event) -> None:
        match event:
            case StageStarted():
                self._create_counters()
            case StepDone():
                self._record_step(event)
            case TilesWritten():
                self._record_tiles(event)
            case CheckpointSaved():
                self._record_checkpoint(event)
            case ImageDone():
                self._record_image(event)
            case _:
                return
        last = isinstance(event, ImageDone)
        if last or self.client.due():
            self._record_memory()
            self.client.send(wait=last)

    def on_sink_call(self, call: SinkCall) -> None:
        record = self.client.record
        record("chorale_store_requests_total", operation=call.operation, outcome=call.outcome)
        record("chorale_store_seconds", call.seconds, operation=call.operation)
        if call.bytes:
            record("chorale_store_bytes_total", call.bytes, operation=call.operation)
        # No events come while a store is away, and just then its failures should be seen.
        if self.client.due():
            self.client.send()

    def close(self) -> None:
        self.client.send(wait=True)

    @property
    def _slot(self) -> int:
        return self.context.slot

    @property
    def _model(self) -> str:
        return model_label(self.context.model)

    def _create_counters(self) -> None:
        """Counters start at 0: Prometheus does not see the growth of one that starts with it."""
        for name in ("pixels", "steps", "model_calls", "model_seconds"):
            self.client.record(f"chorale_{name}_total", 0, slot=self._slot, model=self._model)
        if self.context.rank == 0:
            self.client.record("chorale_images_total", 0, model=self._model)

    def _record_step(self, event: StepDone) -> None:
        record, slot, model = self.client.record, self._slot, self._model
        record("chorale_steps_total", slot=slot, model=model)
        record("chorale_model_calls_total", event.model_calls, slot=slot, model=model)
        record("chorale_model_seconds_total", event.phases["model"], slot=slot, model=model)
        self._record_phases(event.phases)
        if event.border_bytes:
            record("chorale_border_bytes_total", event.border_bytes, slot=slot)
            record("chorale_exchange_seconds", event.exchange_seconds, slot=slot)

    def _record_tiles(self, event: TilesWritten) -> None:
        if event.pixels:
            self.client.record("chorale_pixels_total", event.pixels, slot=self._slot, model=self._model)
        self._record_phases(event.phases)

    def _record_image(self, event: ImageDone) -> None:
        self._record_phases(event.phases)
        # The first rank of those that have finished the image; the one that began as such may be gone.
        if event.rank == 0:
            self.client.record("chorale_images_total", model=self._model)
            self.client.record("chorale_image_seconds", event.seconds, model=self._model)

    def _record_checkpoint(self, event: CheckpointSaved) -> None:
        outcome = "ok" if event.error is None else "failed"
        self.client.record("chorale_checkpoint_seconds", event.seconds, outcome=outcome)
        if event.bytes:
            self.client.record("chorale_checkpoint_bytes_total", event.bytes)

    def _record_phases(self, phases: Mapping[str, float]) -> None:
        for phase, seconds in phases.items():
            if seconds > 0:
                self.client.record("chorale_step_seconds", seconds, slot=self._slot, phase=phase)

    def _record_memory(self) -> None:
        for name, taken in self.context.device_memory().items():
            self.client.record(f"chorale_vram_{name}_bytes", taken, slot=self._slot)
        resident = psutil.Process().memory_info().rss
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.client.record("chorale_rank_resident_bytes", resident, slot=self._slot)
        self.client.record("chorale_rank_resident_peak_bytes", max(peak, resident), slot=self._slot)


def model_label(name: str) -> str:
    """The model's name in metrics: a hub id as it is, a folder by its own name."""
    return name if name.count("/") <= 1 and not name.startswith((".", "/", "~")) else Path(name).name
