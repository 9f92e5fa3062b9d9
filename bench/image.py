"""The engine's own figures: overhead, a second rank, memory."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from bench.launch import run_case
from bench.table import Row
from render.spec import BLENDS

SPEC: dict[str, Any] = {"prompt": "a red vase on a wooden table", "seed": 7}


def _image(folder: Path, name: str, ranks: int, **changes: Any) -> dict[str, Any]:
    return run_case({"kind": "image", "spec": SPEC | changes, "out": str(folder / name)}, ranks)


def speed_rows() -> list[Row]:
    """Overhead of one rank, what a second one brings, and what the machine would let it bring: in turns, and
    with the default number of steps."""
    size = {"width": 1024, "height": 1024}
    turns = range(3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ones, twos, aparts = [], [], []
        for turn in turns:
            ones.append(_image(folder, f"one{turn}", 1, **size))
            twos.append(_image(folder, f"two{turn}", 2, **size))
            with ThreadPoolExecutor(2) as both:
                names = [f"apart{turn}{side}" for side in "ab"]
                aparts.append(list(both.map(lambda each: _image(folder, each, 1, **size), names)))
    assert len({result["root"] for result in (*ones, *twos)}) == 1, "roots differ"
    overhead = median(one["seconds"] / one["bare_seconds"] for one in ones)
    speedup = median(one["seconds"] / two["seconds"] for one, two in zip(ones, twos, strict=True))
    limit = median(
        2 * one["seconds"] / max(result["seconds"] for result in apart)
        for one, apart in zip(ones, aparts, strict=True)
    )
    return [
        Row("one rank at 1024x1024: wall over bare forwards and decodes", overhead, "<= 1.05"),
        Row("two ranks at 1024x1024: times as fast as one", speedup, ">= 1.85"),
        Row("two processes that share nothing, a picture each: times one's rate on this machine", limit, ""),
        Row("two ranks over two such processes", speedup / limit, ""),
    ]


def placement_rows() -> list[Row]:
    """Promise 1 at a size that the test suite has no time for."""
    size = {"width": 2048, "height": 2048, "steps": 4}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for blend in BLENDS:
            results = [_image(Path(name), f"{blend}{n}", n, blend=blend, **size) for n in (1, 2, 3, 4)]
            roots = {result["root"] for result in results}
            rows.append(Row(f"2048x2048, {blend}, ranks 1 to 4: different roots", len(roots), "<= 1"))
    return rows


def memory_rows() -> list[Row]:
    """Peak resident memory above the loaded model at 4096x4096: one rank against four, and what diffusers
    takes to decode such a canvas."""
    sides = {"width": 4096, "height": 4096}
    size = sides | {"steps": 2, "strength": 0.5, "format": "jpeg"}
    with tempfile.TemporaryDirectory() as name:
        one = _image(Path(name), "one", 1, **size)
        four = _image(Path(name), "four", 4, **size)
    assert one["root"] == four["root"], "roots differ"
    whole, tiled = (run_case({"kind": "decode", "tiled": tiled} | sides) for tiled in (False, True))
    return [
        Row("4096x4096, one rank: MiB above the loaded model", one["above_model"] / 2**20, ""),
        Row("4096x4096, four ranks: MiB above the loaded model", four["above_model"] / 2**20, ""),
        Row("four ranks' peak over one rank's", four["above_model"] / one["above_model"], "<= 0.40"),
        Row("diffusers decodes it in one piece: MiB above its model", whole["above_model"] / 2**20, ""),
        Row("diffusers decodes it in its own tiles: MiB above its model", tiled["above_model"] / 2**20, ""),
    ]


def large_rows() -> list[Row]:
    """8192x8192 on two ranks."""
    size = {"width": 8192, "height": 8192, "steps": 2, "strength": 0.5, "format": "jpeg"}
    with tempfile.TemporaryDirectory() as name:
        two = _image(Path(name), "two", 2, **size)
    return [
        Row("8192x8192, 2 steps, two ranks: seconds", two["seconds"], ""),
        Row("8192x8192, 2 steps, two ranks: GiB above the loaded model", two["above_model"] / 2**30, ""),
    ]
