"""One rank of a group, started by torchrun: `python -m jobs.node.rank REQUEST.json`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from jobs.node.lifeline import PARENT, die_with_parent
from jobs.node.news import Reporter
from jobs.node.request import Request


def main() -> int:
    """Render the request's image with the other ranks; 0 when it is published."""
    die_with_parent(int(os.environ[PARENT]))
    request = Request.read(Path(sys.argv[1]))
    report = Reporter(request.news, int(os.environ["RANK"]))
    report.insist({"kind": "started", "pid": os.getpid()})
    from jobs.errors import KNOWN, exit_code

    try:
        _render(request, report)
    except KNOWN as exc:
        report.insist({"kind": "error", "code": exit_code(exc), "text": str(exc)})
        return exit_code(exc)
    return 0


def _render(request: Request, report: Reporter) -> None:
    import torch

    from infra.store.local import LocalStore
    from render.denoise.group import choose_device, join, leave
    from render.engine import render_image
    from render.models import load_adapter
    from render.spec import Spec

    device = choose_device(request.device, int(os.environ["LOCAL_RANK"]))
    if device.type == "cpu":
        # Kernels split their sums by threads: another number would be another picture in its last bits.
        torch.set_num_threads(1)
    spec = Spec.from_mapping(request.spec)
    adapter = load_adapter(Path(request.model), device, spec.dtype, request.facts)
    group = join(device)
    sink = LocalStore(Path(request.out))
    try:
        if group.rank == 0:
            sink.put("spec.json", request.marker.encode(), "application/json")
        render_image(spec, adapter, group, sink, device=device, on_news=_voice(report, group.rank))
    finally:
        leave()


def _voice(report: Reporter, rank: int) -> Any:
    """Every rank works on the same steps; one of them telling is enough, but each has its own tiles."""

    def say(news: dict[str, Any]) -> None:
        if news["kind"] == "done" and rank == 0:
            report.insist(news)
        elif rank == 0 or news["kind"] == "tiles":
            report(news)

    return say


if __name__ == "__main__":
    sys.exit(main())
