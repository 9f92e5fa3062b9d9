"""What crosses the network at a step, beside the model's own time. And what would cross it if the rows of a
window were split over ranks.

Bytes are the plan's. Operations are counted on the networks at their published widths, without weights
(torch's meta device). Times are for a network of 25 Gbit/s and for a GPU that is never slower than its data
sheet says, so that a real one has more time to hide the exchange in. `bench/gpu.py` measures on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu_models import SHAPES
from render.denoise.batches import Batches, make_batches
from render.model_info import ModelInfo
from render.models.single_file import layouts
from render.plan.plan import StagePlan, make_plan
from render.plan.replica_size import LARGEST_REPLICA_BYTES, replica_bytes
from render.spec import Spec

SIZES, RANKS = (4096, 8192), (8, 64)
NODE = 3.125e9
"""Bytes a second of 25 Gbit/s."""
PEAK = 989e12
"""Operations a second in bfloat16 of an H100 or H200, by its data sheet."""
REAL = 0.45 * PEAK
"""What large networks reach of it, for the question whether a split window is sooner."""
LINKS = {"25 Gbit/s": (NODE, 50e-6), "NVLink": (450e9, 15e-6)}
"""Bytes a second, and seconds of a collective by itself."""
SHARDS = 4
"""Ranks of one window: the first stage of a guided image has two evaluations, and a node eight GPUs."""
_BYTES = 2
"""Of a number in bfloat16."""
_TEXT = 512
_PLANES = 2
"""Of the copy: the latents, and those of the step before, which samplers of second order need."""


@dataclass
class Traffic:
    """What the ranks of one split window would have to tell each other in an evaluation."""

    bytes: float = 0.0
    """That each of them receives."""
    collectives: int = 0
    flops: float = 0.0


class _Counted(TorchFunctionMode):
    """Counts what every layer needs that mixes rows: its neighbors' rows, sums, or all keys and values."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        if func is torch.conv2d and args[1].shape[-1] > 1:
            rows, channels = args[1].shape[-2] - 1, args[0].shape[1]
            self._add(rows * channels * args[0].shape[-1] * _BYTES)
        elif func is torch.nn.functional.group_norm:
            self._add(2 * args[1] * 4)
        elif func is torch.nn.functional.scaled_dot_product_attention:
            query, key = (args or (kwargs["query"], kwargs["key"]))[:2]
            # Keys of the prompt are on all ranks.
            if query.shape[-2] == key.shape[-2]:
                self._add(2 * key.numel() * _BYTES * (SHARDS - 1) / SHARDS)
        return answer

    def _add(self, received: float) -> None:
        self._traffic.bytes += received
        self._traffic.collectives += 1


def lines() -> list[str]:
    return [*_exchange_lines(), "", *_split_lines()]


def _exchange_lines() -> list[str]:
    found = [
        "The last stage of an image, 25 Gbit/s for each rank, a GPU at its data sheet's 989 TFLOPS. The "
        "all-gather starts once a rank has evaluated the windows at its borders, and goes on while it "
        "evaluates the others. With the borders goes the copy of the canvas that saves a group which loses "
        "a rank, where that is not too large.",
        "",
        "| model | image | ranks | a rank receives at a step: borders, copy, MiB | seconds | over the step's "
        "model calls | calls that it has beside it, of all: least of any rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, info, flops in _models():
        for size in SIZES:
            for ranks in RANKS:
                stage = make_plan(Spec(prompt="a vase", width=size, height=size), info, ranks).stages[-1]
                if stage.tiling.evaluations >= ranks:
                    found.append(f"| {name} | {size}x{size} | {ranks} | {_exchange(stage, ranks, flops)} |")
    return found


def _exchange(stage: StagePlan, ranks: int, flops: float) -> str:
    copy = replica_bytes(_PLANES, stage.channels, stage.tiling.grid.whole.area)
    borders = (ranks - 1) * stage.message_bytes
    copied = copy * (ranks - 1) / ranks if copy <= LARGEST_REPLICA_BYTES else 0.0
    seconds = (borders + copied) / NODE
    batches = [_batches(stage, rank) for rank in range(ranks)]
    calls = max(len(each.first) + len(each.rest) for each in batches)
    model = calls * stage.stage.batch * flops / PEAK
    beside = min(len(each.rest) for each in batches)
    return (
        f"{borders / 2**20:.1f}, {copied / 2**20:.1f} | {seconds:.4f} | {seconds / model:.3f} | "
        f"{beside} of {calls}"
    )


def _batches(stage: StagePlan, rank: int) -> Batches:
    return make_batches(stage.tiling, rank, (0, 0), stage.stage.batch, lambda _: False)


def _split_lines() -> list[str]:
    found = [
        f"One window of 1024x1024 whose rows are split over {SHARDS} ranks: what each of them receives in an "
        "evaluation, if it is exact, and the time of an evaluation over that on one rank, at "
        f"{REAL / 1e12:.0f} TFLOPS.",
        "",
        "| model | TFLOP | received, MiB | collectives | " + " | ".join(LINKS) + " |",
        "|---|---|---|---|" + "---|" * len(LINKS),
    ]
    for shape in SHAPES:
        traffic = _evaluated(shape.name)
        alone = traffic.flops / REAL
        shares = [
            (alone / SHARDS + traffic.bytes / speed + traffic.collectives * latency) / alone
            for speed, latency in LINKS.values()
        ]
        counts = f"{traffic.flops / 1e12:.0f} | {traffic.bytes / 2**20:.0f} | {traffic.collectives}"
        found.append(f"| {shape.name} | {counts} | " + " | ".join(f"{each:.2f}" for each in shares) + " |")
    return found


def _models() -> list[tuple[str, ModelInfo, float]]:
    """Name, what the plan needs, operations of an evaluation."""
    found = []
    for shape in SHAPES:
        info = shape.make(torch.device("meta"), torch.bfloat16, tiny=False).info
        found.append((shape.name, info, _evaluated(shape.name).flops))
    return found


@cache
def _evaluated(name: str) -> Traffic:
    """One evaluation of a window of 1024x1024 under one condition, on no device."""
    traffic = Traffic()
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter, _Counted(traffic):
        _NETWORKS[name]()
    traffic.flops = counter.get_total_flops()
    return traffic


def _unet() -> None:
    network = diffusers.UNet2DConditionModel.from_config(layouts()["sdxl"]["unet/config.json"])
    more = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
    network(torch.zeros(1, 4, 128, 128), torch.tensor(500), torch.zeros(1, 77, 2048), added_cond_kwargs=more)


def _flux() -> None:
    network = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    network(
        torch.zeros(1, 4096, 64),
        encoder_hidden_states=torch.zeros(1, _TEXT, 4096),
        pooled_projections=torch.zeros(1, 768),
        timestep=torch.zeros(1),
        guidance=torch.zeros(1),
        img_ids=torch.zeros(4096, 3),
        txt_ids=torch.zeros(_TEXT, 3),
    )


def _qwen() -> None:
    network = diffusers.QwenImageTransformer2DModel()
    network(
        torch.zeros(1, 4096, 64),
        encoder_hidden_states=torch.zeros(1, _TEXT, 3584),
        encoder_hidden_states_mask=torch.ones(1, _TEXT, dtype=torch.int64),
        timestep=torch.zeros(1),
        img_shapes=[[(1, 64, 64)]],
    )


_NETWORKS = {"sdxl": _unet, "flux": _flux, "qwen-image": _qwen}
