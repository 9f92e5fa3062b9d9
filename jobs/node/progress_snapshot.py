"""What a node's ranks are at, put together from their news for the people who watch the farm."""

from __future__ import annotations

import time
from typing import Any


class ProgressSnapshot:
    """The state of one attempt on one node, as JSON types; seconds are sums over the attempt so far."""

    def __init__(self) -> None:
        self._told: dict[str, Any] = {}
        self._ranks: dict[str, dict[str, Any]] = {}
        self._first: tuple[float, float] | None = None

    def hear(self, news: dict[str, Any], progress: float | None) -> dict[str, Any]:
        """Take the ranks' news, and give all that is known now."""
        kind = news["kind"]
        if kind == "stage":
            names = ("stage", "stages", "width", "height", "steps")
            self._told |= {name: news[name] for name in names} | {"step": 0}
        elif kind == "step":
            self._told |= {name: news[name] for name in ("stage", "step", "steps")}
            self._told |= {"step_seconds": news["seconds"], "seconds_left": self._seconds_left(progress)}
        if kind in ("step", "share"):
            mine = self._rank(news)["phases"]
            for phase, seconds in news["phases"].items():
                mine[phase] = round(mine.get(phase, 0.0) + seconds, 3)
        elif kind == "tiles":
            self._rank(news)["blocks"] = [news["done"], news["total"]]
            self._told["seconds_left"] = None
        # A new dictionary each time: another thread writes it into the database.
        return self._told | {"ranks": {name: dict(rank) for name, rank in self._ranks.items()}}

    def _rank(self, news: dict[str, Any]) -> dict[str, Any]:
        return self._ranks.setdefault(str(news["rank"]), {"phases": {}})

    def _seconds_left(self, progress: float | None) -> float | None:
        """From the pace since the first step that was heard; None until there are two."""
        if progress is None:
            return None
        at = time.monotonic()
        began, had = self._first = self._first or (at, progress)
        return None if progress <= had else (1 - progress) * (at - began) / (progress - had)
