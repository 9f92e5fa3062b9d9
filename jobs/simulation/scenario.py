"""A scenario: nodes, queues, jobs, faults and times, from a file or from a farm as it is now."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jobs.db.submission import JobOptions
from jobs.db.time_window import TimeWindow
from jobs.ranks import parse_ranks
from jobs.simulation.workload import ModelTimes
from jobs.tags import parse_tags
from render.errors import BadInput
from render.spec import Spec, expand_size, load_yaml


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeGroup(_Part):
    """Nodes of one kind."""

    count: int = Field(1, ge=1, le=10_000)
    slots: int = Field(1, ge=1, le=1024)
    name: str = "node"
    device: str = "cuda"
    tags: tuple[str, ...] = ()

    @field_validator("tags")
    @classmethod
    def _parsed(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        return parse_tags("tags", tags)


class QueueEntry(_Part):
    """The rules of a queue, as `chorale queues` sets them."""

    name: str
    priority: int = Field(50, ge=0, le=100)
    limit: int | None = Field(None, ge=1)
    window: str | None = None
    shares: dict[str, float] = {}

    @property
    def time_window(self) -> TimeWindow | None:
        return None if self.window is None else TimeWindow.parse(self.window)


class JobEntry(BaseModel):
    """`count` equal jobs. Fields that are not listed here are those of a spec."""

    model_config = ConfigDict(frozen=True, extra="allow")

    count: int = Field(1, ge=1, le=1_000_000)
    model: str
    owner: str = "anyone"
    queue: str = "default"
    priority: int | None = Field(None, ge=0, le=100)
    ranks: str | int = "auto"
    require_tag: tuple[str, ...] = ()
    at_s: float = Field(0.0, ge=0, description="When the first is submitted, after the start.")
    every_s: float = Field(0.0, ge=0, description="Time between two of them.")

    @property
    def spec(self) -> Spec:
        """The spec of one of them. Raises `BadInput`."""
        return Spec.from_mapping({"prompt": "x"} | expand_size(dict(self.model_extra or {})))

    @property
    def options(self) -> JobOptions:
        return JobOptions(
            owner=self.owner,
            queue=self.queue,
            priority=self.priority,
            ranks=parse_ranks(str(self.ranks)),
            require_tag=parse_tags("require_tag", self.require_tag),
        )


class Faults(_Part):
    """Nodes that die and return; the same ones at the same times for one seed."""

    node_hours: float = Field(gt=0, description="Mean time between two failures of one node.")
    down_s: float = Field(300.0, ge=0, description="How long it is away.")
    notice_s: float = Field(6.0, ge=0, description="Time until its groups are declared lost.")
    seed: int = 0


class Scenario(_Part):
    """All that a simulation starts from."""

    start: datetime | None = Field(None, description="Time of day matters for windows; default: now.")
    by: datetime | None = Field(None, description="The time by which all has to be done.")
    nodes: tuple[NodeGroup, ...] = Field(min_length=1)
    models: dict[str, ModelTimes]
    queues: tuple[QueueEntry, ...] = ()
    jobs: tuple[JobEntry, ...] = Field(min_length=1)
    faults: Faults | None = None
    checkpoint_s: float = Field(60.0, ge=0, description="Work between two checkpoints, lost with a node.")
    round_s: float = Field(1.0, ge=0, description="Events within this time share a round of placement.")


def read_scenario(path: Path) -> Scenario:
    """Read a scenario from a YAML or JSON file. Raises `BadInput`."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else load_yaml(text)
        scenario = Scenario.model_validate(values)
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput("scenario", str(path), f"cannot be read ({exc}); give a YAML or JSON file") from exc
    except (ValueError, RecursionError) as exc:
        raise BadInput("scenario", str(path), _problem(exc)) from exc
    for entry in scenario.jobs:
        if entry.model not in scenario.models:
            known = ", ".join(scenario.models) or "none"
            raise BadInput("jobs.model", entry.model, f"has no entry in models; known are: {known}")
        _ = entry.spec, entry.options
    for queue in scenario.queues:
        _ = queue.time_window
    return scenario


def _problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        text = " ".join(str(error).split())
        return f"is not a scenario ({text}); see docs/OPERATIONS.md for one"
    first: dict[str, Any] = dict(error.errors()[0])
    place = ".".join(map(str, first["loc"])) or "the file"
    return f"{place}: {first['msg'].lower()}; see docs/OPERATIONS.md for an example"
