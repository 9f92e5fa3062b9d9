"""How numbers and moments are written on the pages."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

WORDS = {
    "queued": "waiting",
    "placing": "placing",
    "rendering": "rendering",
    "publishing": "publishing",
    "done": "done",
    "paused": "paused",
    "failed": "failed",
    "cancelled": "cancelled",
}
"""What a state is called on the pages."""


def duration(seconds: float | None) -> str:
    """`48 s`, `3 min`, `2 h 10 min`, `5 d`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 86_400:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds / 86_400:.0f} d"


def ago(moment: float | None) -> str:
    """How long ago, coarse enough not to change every second."""
    if moment is None:
        return "–"
    seconds = max(0.0, time.time() - moment)
    return "just now" if seconds < 60 else f"{duration(seconds)} ago"


def clock(moment: float | None) -> str:
    """`22:14:07`, with the day where it is not today."""
    if moment is None:
        return "–"
    at = datetime.fromtimestamp(moment).astimezone()
    return f"{at:%H:%M:%S}" if at.date() == datetime.now().date() else f"{at:%a %d %b, %H:%M}"


def upcoming(moment: float | None) -> str:
    """`06:40`, with the day where it is not within the next hours."""
    if moment is None:
        return "–"
    at = datetime.fromtimestamp(moment).astimezone()
    return f"{at:%H:%M}" if moment - time.time() < 18 * 3600 else f"{at:%a %d %b, %H:%M}"


def size_of(count: float | None) -> str:
    """Bytes, as `11.2 GiB`."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def thousands(count: float) -> str:
    return f"{count:,.0f}"


def shares(parts: dict[str, float]) -> list[dict[str, Any]]:
    """Parts of a whole as stretches of a bar: name, value, and where each begins and ends in percent."""
    whole, at, found = sum(parts.values()) or 1.0, 0.0, []
    for name, value in parts.items():
        width = 100 * value / whole
        found.append({"name": name, "value": value, "start": round(at, 2), "width": round(width, 2)})
        at += width
    return found


FILTERS = {
    "duration": duration,
    "ago": ago,
    "clock": clock,
    "upcoming": upcoming,
    "size_of": size_of,
    "percent": percent,
    "thousands": thousands,
    "shares": shares,
    "state_word": lambda state: WORDS[state],
}
