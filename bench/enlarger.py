"""Seconds of an image with and without the built-in enlarger, in turn, on two ranks that have both models."""

from __future__ import annotations

import statistics
import time

from bench.keep import rendered, warm_pipeline
from bench.table import Row
from render.builtin.data import NATIVE

PROMPT, STEPS = "a red vase on a wooden table", 15
RUNS = {2: 7, 4: 5, 8: 3}
"""Times the native side, to pairs of renders."""
ENLARGERS: dict[str, dict[str, str]] = {"bicubic": {}, "network": {"enlarger": "builtin"}}


def rows() -> list[Row]:
    found = []
    with warm_pipeline(2) as pipeline:
        for factor, runs in RUNS.items():
            side, seconds = NATIVE * factor, {name: list[float]() for name in ENLARGERS}
            # The first pair loads what the others find loaded.
            for seed in range(runs + 1):
                for name, options in ENLARGERS.items():
                    started = time.perf_counter()
                    rendered(pipeline, PROMPT, (side, side), STEPS, seed, **options)
                    seconds[name].append(time.perf_counter() - started)
            plain, network = (statistics.median(times[1:]) for times in seconds.values())
            found += [
                Row(f"{side}x{side}, bicubic: seconds", plain, ""),
                Row(f"{side}x{side}, with the network: seconds", network, ""),
                Row(f"{side}x{side}: time with the network over that without", network / plain, ""),
            ]
    return found
