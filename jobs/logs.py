"""The logs of a job's attempts: those on this machine, and the copies of all nodes' in the farm's store."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from infra.settings import default_home
from infra.store.base import Store
from jobs.farm import LOGS


class LogReader:
    """Reads the new text of a job's logs. A local log has precedence over its collected copy."""

    def __init__(self, images: Store, job: str, attempt: int | None = None) -> None:
        number = "*" if attempt is None else f"{attempt:04d}"
        self._images, self._pattern = images, f"{job}-{number}-*.log"
        self._read: dict[str, int] = {}
        self.last: str | None = None
        """Name of the log that was shown last."""

    def new(self, collected: bool) -> list[tuple[str, bytes]]:
        """(name, text) by attempt; `collected` includes the store, which may be slow."""
        found = [(path.name, self._tail(path)) for path in (default_home() / LOGS).glob(self._pattern)]
        if collected:
            found += self._collected({name for name, _ in found})
        return sorted((name, text) for name, text in found if text)

    def _tail(self, path: Path) -> bytes:
        with path.open("rb") as file:
            file.seek(self._read.get(path.name, 0))
            text = file.read()
        self._read[path.name] = self._read.get(path.name, 0) + len(text)
        return text

    def _collected(self, local: set[str]) -> list[tuple[str, bytes]]:
        """Collected logs are complete, so each is read once."""
        prefix = f"{LOGS}/{self._pattern.partition('*')[0]}"
        names = fnmatch.filter(
            (entry.key.removeprefix(f"{LOGS}/") for entry in self._images.entries(prefix)), self._pattern
        )
        new = [name for name in names if name not in local | self._read.keys()]
        self._read |= dict.fromkeys(new, 0)
        return [(name, self._images.get(f"{LOGS}/{name}")) for name in new]
