"""Exact decode and encode beside diffusers' undivided pass and its own tiling, at tiny widths."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.launch import run_case

KINDS = {
    "kl": "AutoencoderKL",
    "flux2": "AutoencoderKLFlux2",
    "qwen": "AutoencoderKLQwenImage",
    "dc": "AutoencoderDC",
}
PASSES = ((1024, True), (1024, False), (2048, True))
"""(side in pixels, whether it decodes)."""
RANKS = (1, 2, 3, 4)
BUDGET = 16 << 20
"""Bytes of activations that a rank keeps in memory here: tiny widths make small activations."""
_TILE = 256

Results = list[dict[str, Any]]


def lines() -> list[str]:
    """A table: differences from the undivided pass, memory, and whether all numbers of ranks agree."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, tiling = (_measured(how, folder) for how in ("whole", "tiling"))
        layers = {ranks: _measured("layers", folder, ranks) for ranks in RANKS}
        rows = [
            _row(title, side, decodes, number, whole, tiling, layers)
            for number, (title, side, decodes) in enumerate(
                (title, *each) for title in KINDS.values() for each in PASSES
            )
        ]
    return [
        "Tiny widths (8 to 16 channels), float32, random weights. MiB are the peak above the loaded network",
        "with the input; they hold the result as a whole in float32, which a render never does (48 MiB at",
        "2048). `Layers` keeps at most 16 MiB of activations in memory. Color: the largest difference",
        "between neighboring 256 px tiles in how far their mean color is off, in [0, 1].",
        "",
        "| autoencoder | side | pass | undivided: MiB, s "
        "| diffusers' tiling: largest difference, color, MiB, s "
        "| layers: largest difference, color, MiB, s | on 4 ranks: MiB | one result on 1 to 4 ranks |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def _measured(how: str, folder: Path, ranks: int = 1) -> Results:
    """All cases by one group of processes."""
    cases = [
        {
            "autoencoder": kind,
            "side": side,
            "decodes": decodes,
            "how": how,
            "budget": BUDGET,
            "out": str(folder / f"{how}-{kind}-{side}-{decodes}.pt"),
        }
        for kind in KINDS
        for side, decodes in PASSES
    ]
    results: Results = run_case({"kind": "autoencoder", "cases": cases}, ranks)["results"]
    return [result | case for result, case in zip(results, cases, strict=True)]


def _row(
    title: str,
    side: int,
    decodes: bool,
    number: int,
    whole: Results,
    tiling: Results,
    layers: dict[int, Results],
) -> str:
    same = len({each[number]["sha256"] for each in layers.values()}) == 1
    expected = torch.load(whole[number]["out"], weights_only=True)
    cells = [title, str(side), "decode" if decodes else "encode", _cost(whole[number])]
    for results in (tiling, layers[1]):
        found = torch.load(results[number]["out"], weights_only=True)
        cells.append(f"{_differences(found, expected, decodes)}, {_cost(results[number])}")
    cells += [f"{layers[4][number]['above_model'] / 2**20:.0f}", "yes" if same else "NO"]
    return f"| {' | '.join(cells)} |"


def _cost(result: dict[str, Any]) -> str:
    return f"{result['above_model'] / 2**20:.0f}, {result['seconds']:.1f}"


def _differences(found: Tensor, expected: Tensor, decodes: bool) -> str:
    """The largest difference, and for pixels the largest difference of colors between tiles."""
    largest = float((found - expected).abs().max())
    color = f"{color_difference(found, expected):.3f}" if decodes else "-"
    return f"{largest:.1e}, {color}"


def color_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference between neighboring tiles in the error of their mean color, in [0, 1]."""
    off = functional.avg_pool2d(found - expected, _TILE)
    steps = [off.diff(dim=axis).abs() for axis in (2, 3)]
    return max(float(each.max()) for each in steps)
