"""One rank of `ParallelizedDiffusionPipeline`, started by torchrun: `python -m render.rank CASE`.

It says what happens as lines of JSON on stdout. The farm has a rank of its own, `render.launch.rank`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from render.launch.parent_death import die_with_parent


def main() -> int:
    """Render the case with the other ranks; 0 when it is published."""
    die_with_parent()
    import torch

    from render.denoise.checkpoint import CheckpointManager
    from render.distributed import choose_device, join
    from render.engine import render_image
    from render.errors import BadInput, RenderError
    from render.folder_sink import FolderSink
    from render.model_info import ModelInfo
    from render.models import ModelPaths, load_models
    from render.spec import Spec

    case = json.loads(sys.argv[1])
    info, rank = ModelInfo(**case["info"]), int(os.environ["RANK"])
    try:
        device = choose_device(case["device"], int(os.environ["LOCAL_RANK"]))
        if device.type == "cpu":
            torch.set_num_threads(1)
        spec = Spec.from_mapping(case["spec"])
        adapter, refiner = load_models(ModelPaths.from_json(case["folders"]), device, spec.dtype, info)
        sink = FolderSink(Path(case["out"]))
        checkpoints = CheckpointManager(sink, spec.digest(info.digest), device, every_s=30.0)
        listen = _say if rank == 0 else _say_nothing
        group = join(device)
        render_image(
            spec,
            adapter,
            group,
            sink,
            device=device,
            on_event=listen,
            checkpoints=checkpoints,
            refiner=refiner,
        )
    except (RenderError, OSError) as exc:
        bad = [exc.field, exc.value, exc.fix] if isinstance(exc, BadInput) else None
        _say({"kind": "error", "text": str(exc), "bad": bad})
        return 1
    return 0


def _say(news: dict[str, Any]) -> None:
    # In one write, so that the lines of two ranks do not mix.
    sys.stdout.write(json.dumps(news, default=str) + "\n")
    sys.stdout.flush()


def _say_nothing(news: dict[str, Any]) -> None:
    pass


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not by way of the interpreter's end: there gloo's threads now and then abort a process that is done.
    os._exit(code)
