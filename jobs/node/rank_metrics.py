"""Turns a rank's news into measures for its agent. The engine knows nothing of it."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.store.instrumented import StoreCall
from jobs.node.metrics_client import MetricsClient

_PAGE = resource.getpagesize()


@dataclass(frozen=True, kw_only=True)
class RankMetrics:
    """Hears the news of one rank while it renders one image; `memory` tells what its tensors take."""

    meter: MetricsClient
    slot: int
    model: str
    rank: int
    memory: Callable[[], Mapping[str, int]]

    def __call__(self, news: Mapping[str, Any]) -> None:
        handler = getattr(self, f"_on_{news['kind']}", None)
        if handler is None:
            return
        handler(news)
        last = news["kind"] == "done"
        if last or self.meter.due():
            self._tell_memory()
            self.meter.send(insist=last)

    def on_request(self, call: StoreCall) -> None:
        """A request to the store has come to its end; from whichever thread."""
        tell = self.meter.tell
        tell("chorale_store_requests_total", operation=call.operation, outcome=call.outcome)
        tell("chorale_store_seconds", call.seconds, operation=call.operation)
        if call.bytes:
            tell("chorale_store_bytes_total", call.bytes, operation=call.operation)
        # There are no news while a store is away, and just then it should be heard.
        if self.meter.due():
            self.meter.send()

    def _on_stage(self, news: Mapping[str, Any]) -> None:
        """Counters begin at nothing: Prometheus does not see the growth of one that begins with it."""
        for name in ("pixels", "steps", "model_calls", "model_seconds"):
            self.meter.tell(f"chorale_{name}_total", 0, slot=self.slot, model=self.model)
        if self.rank == 0:
            self.meter.tell("chorale_images_total", 0, model=self.model)

    def _on_step(self, news: Mapping[str, Any]) -> None:
        tell, slot, model = self.meter.tell, self.slot, self.model
        tell("chorale_steps_total", slot=slot, model=model)
        tell("chorale_model_calls_total", news["calls"], slot=slot, model=model)
        tell("chorale_model_seconds_total", news["phases"]["model"], slot=slot, model=model)
        self._tell_phases(news)
        if news["border_bytes"]:
            tell("chorale_border_bytes_total", news["border_bytes"], slot=slot)
            tell("chorale_exchange_seconds", news["exchange"], slot=slot)

    def _on_tiles(self, news: Mapping[str, Any]) -> None:
        if news["pixels"]:
            self.meter.tell("chorale_pixels_total", news["pixels"], slot=self.slot, model=self.model)
        self._tell_phases(news)

    def _on_done(self, news: Mapping[str, Any]) -> None:
        self._tell_phases(news)
        if self.rank == 0:
            self.meter.tell("chorale_images_total", model=self.model)
            self.meter.tell("chorale_image_seconds", news["seconds"], model=self.model)

    def _on_checkpoint(self, news: Mapping[str, Any]) -> None:
        outcome = "ok" if news["error"] is None else "failed"
        self.meter.tell("chorale_checkpoint_seconds", news["seconds"], outcome=outcome)
        if news["bytes"]:
            self.meter.tell("chorale_checkpoint_bytes_total", news["bytes"])

    def _tell_phases(self, news: Mapping[str, Any]) -> None:
        for phase, seconds in news["phases"].items():
            if seconds > 0:
                self.meter.tell("chorale_step_seconds", seconds, slot=self.slot, phase=phase)

    def _tell_memory(self) -> None:
        for name, taken in self.memory().items():
            self.meter.tell(f"chorale_vram_{name}_bytes", taken, slot=self.slot)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.meter.tell("chorale_rank_resident_bytes", resident, slot=self.slot)
        self.meter.tell("chorale_rank_resident_peak_bytes", max(peak, resident), slot=self.slot)


def model_label(name: str) -> str:
    """What a model is called in metrics: a hub id as it is, a folder by its own name."""
    return name if name.count("/") <= 1 and not name.startswith((".", "/", "~")) else Path(name).name
