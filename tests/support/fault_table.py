"""Every fault of the network once, while an image is published through it: what it cost and how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch

from render.distributed import SingleRankGroup
from render.engine import render_image
from render.output.manifest import KEY
from render.output.verify import verify_image
from render.spec import Spec
from tests.support.buckets import Bucket
from tests.support.cli import wait_until
from tests.support.faults import Fault, FaultProxy, fault_proxy
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

SPEC = Spec(prompt="x", width=264, height=200, steps=1, tile_size=64)
PATIENCE_S = 60.0
_TILE = "image_files/"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the image."""

    fault: str
    tries: int
    """Requests above those of an undisturbed render."""
    done: bool
    same_root: bool
    lost: int
    doubled: int
    """Files that are missing, and that nobody has asked for."""

    @property
    def holds(self) -> bool:
        return self.done and self.same_root and not self.lost and not self.doubled


def _planned(*faults: Fault) -> Callable[[FaultProxy], None]:
    # Copies: a fault counts down as it happens.
    return lambda proxy: proxy.faults.extend(replace(fault) for fault in faults)


def _slow(proxy: FaultProxy) -> None:
    proxy.bytes_per_s = 100_000.0


def outage(seconds: float) -> Callable[[FaultProxy], None]:
    """Cut once the first tiles are there, for so long."""

    def begin(proxy: FaultProxy) -> None:
        def run() -> None:
            wait_until(lambda: proxy.seen("PUT", _TILE) > 3)
            proxy.cut()
            threading.Event().wait(seconds)
            proxy.mend()

        threading.Thread(target=run, daemon=True).start()

    return begin


SLOW_DOWN = {"status": "503 Slow Down", "code": "SlowDown"}
CONFLICT = {"status": "409 Conflict", "code": "ConditionalRequestConflict"}
QUIET = ("no fault", "slow link of 100 kB/s")
"""Those that cost no request more."""
FAULTS: dict[str, Callable[[FaultProxy], None]] = {
    "no fault": lambda proxy: None,
    "outage of 3 s": outage(3.0),
    "500 five times": _planned(Fault(kind="status", times=5, path=_TILE)),
    "503 SlowDown ten times": _planned(Fault(kind="status", times=10, path=_TILE, **SLOW_DOWN)),
    "connection cut five times": _planned(Fault(kind="reset", times=5, path=_TILE)),
    "lost answer to a tile": _planned(Fault(kind="lost answer", times=3, path=_TILE)),
    "lost answer to the manifest": _planned(Fault(kind="lost answer", path=KEY)),
    "409 to the manifest": _planned(Fault(kind="status", times=2, path=KEY, **CONFLICT)),
    "truncated body": _planned(Fault(kind="truncated", times=3, method="GET", path=_TILE)),
    "slow link of 100 kB/s": _slow,
}


@cache
def _undisturbed() -> tuple[str, frozenset[str]]:
    """Its root, and all its files."""
    sink = MemorySink()
    root = render_image(SPEC, ToyModel(), SingleRankGroup(), sink, device=torch.device("cpu")).root
    return root, frozenset(sink.files)


def try_fault(bucket: Bucket, name: str, begin: Callable[[FaultProxy], None] | None = None) -> Outcome:
    """Render, publish and verify with the fault between us and the bucket.

    This process must have the bucket's credentials.
    """
    root, wanted = _undisturbed()
    with fault_proxy(bucket.endpoint) as proxy:
        store = bucket.at(proxy.url).store(bucket.fresh_url(), patience_s=PATIENCE_S)
        (begin or FAULTS[name])(proxy)
        report = render_image(SPEC, ToyModel(), SingleRankGroup(), store, device=torch.device("cpu"))
        whole = verify_image(store, report.manifest).passes
        found = {entry.key for entry in store.entries()}
    requests = len(wanted) + 2 + len(report.manifest.tiles)
    return Outcome(
        fault=name,
        tries=len(proxy.requests) - requests,
        done=whole,
        same_root=report.root == root,
        lost=len(wanted - found),
        doubled=len(found - wanted),
    )
