"""Run by torchrun from test_placement: renders every case with this group and prints the roots."""

import itertools
import json
import os
import sys

import torch

from render.builtin import WEIGHTS
from render.distributed import Group, SingleRankGroup, join, leave
from render.engine import render_image
from render.models import load_adapter
from render.models.folder import read_model_info
from render.spec import BLENDS, SAMPLERS, Spec
from tests.support.sinks import MemorySink

SIZES = {"wide": (448, 192), "tall": (192, 384), "square": (320, 320)}


def cases() -> dict[str, Spec]:
    """Every blend with every sampler at a wide, a tall and a square size, in two stages; and every blend with
    windows of an odd shape, with wrapped edges, with dilated views, and with both forms of
    cross-window attention."""
    combined = itertools.product(BLENDS, SAMPLERS, SIZES)
    plain = {
        f"{blend} {sampler} {name}": Spec(
            prompt="a red vase on a wooden table",
            width=SIZES[name][0],
            height=SIZES[name][1],
            seed=11,
            steps=4,
            strength=0.5,
            guidance_scale=3.0,
            sampler=sampler,
            blend=blend,
            tile_size=128,
        )
        for blend, sampler, name in combined
    }
    special = {}
    for blend in BLENDS:
        special[f"{blend} low"] = plain[f"{blend} euler wide"].with_changes(width=640, height=104)
        special[f"{blend} wrap"] = plain[f"{blend} dpmpp-2m wide"].with_changes(wrap="xy")
        square = plain[f"{blend} euler square"]
        special[f"{blend} pooled"] = square.with_changes(dilated=0.7, cross_attention=1.0)
        special[f"{blend} learned"] = square.with_changes(cross_attention=1.0, cross_attention_form="learned")
    return plain | special


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    group: Group = join(device) if "RANK" in os.environ else SingleRankGroup()
    adapter = load_adapter(WEIGHTS, device, "float32", read_model_info(WEIGHTS))
    names = sys.argv[1:] or list(cases())
    roots = {}
    for name in names:
        sink = MemorySink()
        roots[name] = render_image(cases()[name], adapter, group, sink, device=device).root
    if group.rank == 0:
        print(json.dumps(roots))
    leave()


if __name__ == "__main__":
    main()
