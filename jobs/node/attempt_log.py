"""The log of one attempt on one node: the lines of its supervisor, and what its ranks print."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path

from infra.errors import StoreError
from infra.store.base import Store
from jobs.db.records import Assignment
from jobs.farm import LOGS
from jobs.formatting import plural
from render.events import (
    CheckpointSaved,
    EpochBegan,
    Event,
    FirstNodeLost,
    ModelLoaded,
    NodeLost,
    RankFailed,
    RankLeft,
    RankStopped,
    StageStarted,
    StepDone,
)


class AttemptLog:
    """Lines that begin with their time, appended to a file that the ranks write to as well."""

    def __init__(self, folder: Path, part: Assignment) -> None:
        self.path = folder / log_name(part.job, part.fence, part.node)
        self._part = part

    def begin(self) -> None:
        part = self._part
        self.write(f"attempt {part.fence} of job {part.job}: slots {list(part.slots)} of node {part.node}")

    def write(self, text: str) -> None:
        """Append a line, if that is possible: an image does not depend on its log."""
        moment = datetime.now().astimezone().isoformat(timespec="seconds")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{moment} {text}\n")

    def collect(self, images: Store) -> None:
        """Copy the log to where those of all nodes are; a log that cannot be copied stays where it is."""
        with contextlib.suppress(OSError, StoreError):
            images.put(f"{LOGS}/{self.path.name}", self.path.read_bytes(), "text/plain; charset=utf-8")

    def on_event(self, event: Event) -> None:
        """Append a line for an event that people look for in a log."""
        line = _line(event)
        if line is not None:
            self.write(line)


def _line(event: Event) -> str | None:
    match event:
        case ModelLoaded():
            return f"model loaded in {event.seconds:.1f} s"
        case StageStarted():
            size = f"{event.width}x{event.height}"
            return f"stage {event.stage + 1} of {event.stages}: {size}, {event.steps} steps"
        case StepDone():
            times = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in event.phases.items())
            return f"step {event.step} of {event.steps}: {times}"
        case CheckpointSaved():
            outcome = "saved" if event.error is None else f"not saved: {event.error}"
            return f"checkpoint after step {event.step} of stage {event.stage + 1} {outcome}"
        case EpochBegan():
            ranks = plural(event.ranks, "rank")
            return f"the group formed again in {event.seconds:.1f} s and continues with {ranks}"
        case RankLeft():
            why = "as it was told" if event.asked else event.text or "since it has failed"
            return f"rank {event.rank} has left the group, {why}; the others go on"
        case FirstNodeLost():
            return "this node does not reach the first node of the group"
        case NodeLost():
            return f"node {event.node} of the group is lost; the others go on"
        case RankFailed() | RankStopped():
            return f"rank {event.rank}: {event.text}"
        case _:
            return None


def log_name(job: str, fence: int, node: str) -> str:
    """Name of the file; sorts by attempt."""
    return f"{job}-{fence:04d}-{node}.log"
