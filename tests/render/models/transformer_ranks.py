"""Run by torchrun from test_transformers_on_ranks: renders each family's tiny model and prints the roots."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from render.distributed import Group, SingleRankGroup, join, leave
from render.engine import render_image
from render.models import load_adapter
from render.models.folder import read_model_info
from render.spec import BLENDS, Spec
from tests.support.sinks import MemorySink


def specs(folder: Path) -> dict[str, Spec]:
    """Two stages, several windows in the second, a side that is an odd number of latents; both blends."""
    info = read_model_info(folder)
    unit = info.scale_factor
    return {
        f"{folder.name} {blend}": Spec(
            prompt="a red vase",
            width=2 * info.native_size + 3 * unit,
            height=info.native_size + unit,
            seed=11,
            steps=2,
            strength=0.5,
            guidance_scale=3.0,
            sampler="euler" if "euler" in info.samplers else "lcm",
            blend=blend,
            tile_size=128,
        )
        for blend in BLENDS
    }


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    group: Group = join(device) if "RANK" in os.environ else SingleRankGroup()
    roots = {}
    for folder in map(Path, sys.argv[1:]):
        adapter = load_adapter(folder, device, "float32", read_model_info(folder))
        for name, spec in specs(folder).items():
            roots[name] = render_image(spec, adapter, group, MemorySink(), device=device).root
    if group.rank == 0:
        print(json.dumps(roots))
    leave()


if __name__ == "__main__":
    main()
