"""One rank of a group, started just before torchrun, or by it: `python -m render.launch.rank DESK`.

DESK is a folder of whoever started the group: requests come as files, news go to a socket. Between two
requests the rank waits with its model loaded.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.node.metrics_client import MetricsClient
from jobs.node.rank_metrics import RankMetrics, model_label
from render.launch.event_channel import EventSender
from render.launch.group_directory import news_path, request_path
from render.launch.launcher import PEERS_LOST
from render.launch.parent_death import PARENT, die_with_parent
from render.launch.preloaded_rank import PreloadedRank
from render.launch.request import Request

if TYPE_CHECKING:
    import torch

    from render.distributed import Group
    from render.models.adapter import Adapter

_LOOK_S = 0.01
"""Between two looks for the next request."""


def main() -> int:
    """Render request after request with the other ranks; 0 when the last one is published or stopped."""
    stop = threading.Event()
    # Whoever started us asks for a stop after the step by this signal; all ranks then hear of it.
    signal.signal(signal.SIGUSR1, lambda *_: stop.set())
    desk = Path(sys.argv[1])
    report = EventSender(str(news_path(desk)), int(os.environ["RANK"]))
    report.insist({"kind": "started", "pid": os.getpid()})
    from infra.errors import ServiceError, StoreError
    from jobs.errors import KNOWN, exit_code
    from render.distributed import leave
    from render.errors import RanksLost, Stopped

    rank = _Rank(report, stop)
    try:
        _serve(rank, desk)
    except Stopped as exc:
        report.insist({"kind": "stopped", "text": str(exc)})
        return 0
    except RanksLost:
        # Not told as news: whoever knows what befell the lost ones shall say it.
        traceback.print_exc()
        return PEERS_LOST
    except KNOWN as exc:
        outage = isinstance(exc, (StoreError, ServiceError))
        report.insist({"kind": "error", "code": exit_code(exc), "text": str(exc), "outage": outage})
        return exit_code(exc)
    finally:
        rank.meter.send(insist=True)
        leave()
    return 0


def _serve(rank: _Rank, desk: Path) -> None:
    number = 1
    while True:
        path = request_path(desk, number)
        if path.exists():
            request = Request.read(path)
            rank.render(request)
            if request.last:
                return
            number += 1
        else:
            time.sleep(_LOOK_S)


@dataclass
class _Rank:
    """What lives from one request to the next: the group, and the model that was used last."""

    report: EventSender
    stop: threading.Event
    meter: MetricsClient = field(default_factory=MetricsClient.from_environment)
    _group: Group | None = None
    _loaded: tuple[tuple[Any, ...], tuple[Adapter, Adapter | None]] | None = field(default=None)

    def render(self, request: Request) -> None:
        """Render one image with the other ranks."""
        import torch

        from infra.settings import read_settings
        from infra.store.open import open_store
        from render.denoise.checkpoint import CheckpointManager
        from render.distributed import choose_device, join
        from render.engine import render_image
        from render.errors import RenderFailed
        from render.launch.device_memory import device_memory
        from render.spec import Spec

        if request.log is not None:
            _write_to(request.log)
        device = choose_device(request.device, int(os.environ["LOCAL_RANK"]))
        if device.type == "cpu":
            # Kernels split their sums by threads: another number would be another picture in its last bits.
            torch.set_num_threads(1)
        spec = Spec.from_mapping(request.spec)
        adapter, refiner = self._models(request, device, spec.dtype)
        self._group = self._group or join(device)
        local_rank = int(os.environ["LOCAL_RANK"])
        measure = RankMetrics(
            meter=self.meter,
            slot=request.slots[local_rank] if request.slots else local_rank,
            model=model_label(spec.model),
            rank=self._group.rank,
            memory=partial(device_memory, device),
        )
        sink = open_store(
            request.out, read_settings({}), patience_s=request.patience_s, observe=measure.on_request
        )
        say = _voice(self.report, measure)
        checkpoints = CheckpointManager(
            sink,
            spec.digest(request.info.digest),
            device,
            every_s=request.checkpoint_s,
            stop=self.stop.is_set,
            on_kept=lambda kept: say(
                {
                    "kind": "checkpoint",
                    "stage": kept.checkpoint.stage,
                    "step": kept.checkpoint.canvas.step,
                    "bytes": kept.bytes,
                    "seconds": kept.seconds,
                    "error": None if kept.error is None else str(kept.error),
                }
            ),
        )
        try:
            render_image(
                spec,
                adapter,
                self._group,
                sink,
                device=device,
                on_event=say,
                checkpoints=checkpoints,
                refiner=refiner,
            )
        except torch.OutOfMemoryError as exc:
            raise RenderFailed(
                f"rank {self._group.rank} has not enough memory on {device}; use more ranks or a smaller "
                "window_batch"
            ) from exc

    def _models(self, request: Request, device: torch.device, dtype: str) -> tuple[Adapter, Adapter | None]:
        from render.models import load_models

        wanted = (request.folders, request.info.digest, dtype)
        if self._loaded is None or self._loaded[0] != wanted:
            # The old model goes before the new one comes: there is seldom room for two.
            self._loaded = None
            started = time.perf_counter()
            self._loaded = wanted, load_models(request.folders, device, dtype, request.info)
            if int(os.environ["LOCAL_RANK"]) == 0:
                self.report({"kind": "loaded", "seconds": time.perf_counter() - started})
        return self._loaded[1]


def _voice(report: EventSender, measure: RankMetrics) -> Callable[[dict[str, Any]], None]:
    """Every rank works on the same steps; one on each node tells of them, the others only of their share.
    Each has its own tiles, and is measured by itself."""
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])

    def say(news: dict[str, Any]) -> None:
        measure(news)
        if news["kind"] == "done":
            if rank == 0:
                report.insist(news)
        elif local_rank == 0 or news["kind"] == "tiles":
            report(news)
        elif news["kind"] == "step":
            report(news | {"kind": "share"})

    return say


def _import() -> None:
    """What takes a rank the most time before its first request."""
    import render.engine
    import render.models.sd
    import render.models.sdxl  # noqa: F401


def _write_to(log: str) -> None:
    """What this process prints from here on goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    die_with_parent(int(os.environ[PARENT]))
    early = PreloadedRank.begin(_import)
    code = 1
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    early.end(code)
    # Not by way of the interpreter's end: there gloo's threads now and then abort a process that is done.
    os._exit(code)
