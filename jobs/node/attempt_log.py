"""The log of one attempt on one node: what its supervisor and its ranks say."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.errors import StoreError
from infra.store.base import Store
from jobs.db.records import Assignment
from jobs.farm import LOGS


class AttemptLog:
    """Lines with the time before them, at the end of a file that the ranks write to as well."""

    def __init__(self, folder: Path, part: Assignment) -> None:
        self.path = folder / log_name(part.job, part.fence, part.node)
        self._part = part

    def begin(self) -> None:
        part = self._part
        self.say(f"attempt {part.fence} of job {part.job}: slots {list(part.slots)} of node {part.node}")

    def say(self, text: str) -> None:
        moment = datetime.now().astimezone().isoformat(timespec="seconds")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{moment} {text}\n")

    def collect(self, images: Store) -> None:
        """Copy the log to where those of all nodes are; a log that cannot be copied stays where it is."""
        with contextlib.suppress(OSError, StoreError):
            images.put(f"{LOGS}/{self.path.name}", self.path.read_bytes(), "text/plain; charset=utf-8")

    def hear(self, news: dict[str, Any]) -> None:
        """Write down the ranks' news that are worth it."""
        kind = news["kind"]
        if kind == "loaded":
            self.say(f"model loaded in {news['seconds']:.1f} s")
        elif kind == "stage":
            size = f"{news['width']}x{news['height']}"
            self.say(f"stage {news['stage'] + 1} of {news['stages']}: {size}, {news['steps']} steps")
        elif kind == "step":
            times = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in news["phases"].items())
            self.say(f"step {news['step']} of {news['steps']}: {times}")
        elif kind == "checkpoint":
            end = "kept" if news["error"] is None else f"not kept: {news['error']}"
            self.say(f"checkpoint after step {news['step']} of stage {news['stage'] + 1} {end}")
        elif kind in ("error", "stopped"):
            self.say(f"rank {news['rank']}: {news['text']}")


def log_name(job: str, fence: int, node: str) -> str:
    """Name of the file; sorts by attempt."""
    return f"{job}-{fence:04d}-{node}.log"
