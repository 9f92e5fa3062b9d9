"""The log of one attempt on one node: what its supervisor and its ranks say."""

from __future__ import annotations

import contextlib
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.settings import Settings, default_home
from jobs.farm import logs_folder
from jobs.state.attempts import Assignment


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

    def collect(self, folder: Path) -> None:
        """Copy the log to where those of all nodes are; a log that cannot be copied stays where it is."""
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path, folder / self.path.name)

    def hear(self, news: dict[str, Any]) -> None:
        """Write down the ranks' news that are worth it."""
        kind = news["kind"]
        if kind == "stage":
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


def log_files(settings: Settings, job: str, attempt: int | None = None) -> list[Path]:
    """A job's logs by attempt; a file that is here and among the collected ones is taken once, from here."""
    name = f"{job}-{'*' if attempt is None else f'{attempt:04d}'}-*.log"
    collected = {path.name: path for path in logs_folder(settings).glob(name)}
    own = {path.name: path for path in (default_home() / "logs").glob(name)}
    return [path for _, path in sorted((collected | own).items())]
