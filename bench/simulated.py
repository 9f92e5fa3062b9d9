"""Simulated nights: how busy the scheduler's placement keeps a farm, and how long one of its rounds takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.table import Row
from jobs.simulation.outcome import Outcome
from jobs.simulation.scenario import Scenario, read_scenario
from jobs.simulation.setup import from_scenario

_NIGHT = Path("examples/scenarios/night.yaml")
_SIZES = ("1024x1024", "2048x2048", "4096x4096", "8192x8192")
_SLOWER = 4.5
"""An evaluation takes half a second, as on a smaller GPU: 200 jobs then do not end within two minutes."""


def rows() -> list[Row]:
    """A long night with native-size images, the 200 jobs of one evening, 1,000 nodes, and one node alone."""
    night = read_scenario(_NIGHT)
    long, evening = from_scenario(night).run(), from_scenario(_evening(night, 1)).run()
    many = from_scenario(_evening(night, 125, nodes=1000)).run()
    return [
        *_busy(f"{long.jobs:,} jobs on 8 nodes of 8", long),
        *_busy("200 jobs of 1024 to 8192 on 8 nodes of 8", evening),
        *_busy("25,000 such jobs on 1,000 nodes of 8", many),
        Row("1,000 nodes: slowest round of placement, seconds", many.slowest_round_s, "<= 1"),
        Row("one 4096x4096 alone on 8 slots: busy share", _large(night, 1).busy_share, ">= 0.80"),
        Row("ten of them on 8 slots: busy share", _large(night, 10).busy_share, ">= 0.95"),
    ]


def _busy(what: str, outcome: Outcome) -> list[Row]:
    return [
        Row(f"{what}: busy share", outcome.busy_share, ">= 0.95"),
        Row(f"{what}: makespan over the work divided by the slots", _over(outcome), "<= 1.08"),
    ]


def _over(outcome: Outcome) -> float:
    return outcome.makespan_s / outcome.lower_bound_s


def _large(night: Scenario, count: int) -> Outcome:
    """So many 4096x4096 images on one node whose groups have loaded the model."""
    job = {"model": "sdxl", "count": count, "size": "4096x4096", "steps": 25, "owner": "studio"}
    loaded = night.models["sdxl"].model_copy(update={"start_s": 0.0})
    parts = night.model_dump() | {
        "jobs": [job],
        "nodes": [{"slots": 8}],
        "models": {"sdxl": loaded},
        "faults": None,
    }
    return from_scenario(Scenario.model_validate(parts)).run()


def _evening(night: Scenario, times: int, nodes: int = 8) -> Scenario:
    """SDXL-shaped jobs of four sizes, all submitted at the start, and no faults."""
    jobs: list[dict[str, Any]] = [
        {"model": "sdxl", "count": 50 * times, "size": size, "steps": 25, "owner": "studio"}
        for size in _SIZES
    ]
    sdxl = night.models["sdxl"]
    slower = sdxl.model_copy(update={"evaluation_s": sdxl.evaluation_s * _SLOWER})
    parts = night.model_dump() | {
        "jobs": jobs,
        "nodes": [{"count": nodes, "slots": 8}],
        "models": {"sdxl": slower},
        "faults": None,
    }
    return Scenario.model_validate(parts)
