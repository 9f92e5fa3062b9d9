"""Jinja filters: how numbers and times are written on the pages."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jobs.formatting import duration, maintenance_text, percent, plural, size, thousands


def optional(write: Callable[[float], str]) -> Callable[[float | None], str]:
    """The same filter with a dash for None."""
    return lambda value: "–" if value is None else write(value)


def ago(moment: float) -> str:
    """How long ago, coarse enough not to change every second."""
    seconds = max(0.0, time.time() - moment)
    return "just now" if seconds < 60 else f"{duration(seconds)} ago"


def clock(moment: float) -> str:
    """`22:14:07`, with the day unless it is today."""
    at = datetime.fromtimestamp(moment).astimezone()
    return f"{at:%H:%M:%S}" if at.date() == datetime.now().date() else f"{at:%a %d %b, %H:%M}"


def upcoming(moment: float) -> str:
    """`06:40`, with the day if it is more than 18 hours ahead."""
    at = datetime.fromtimestamp(moment).astimezone()
    return f"{at:%H:%M}" if moment - time.time() < 18 * 3600 else f"{at:%a %d %b, %H:%M}"


def shares(parts: dict[str, float]) -> list[dict[str, Any]]:
    """Parts of a whole as segments of a bar: name, value, start and width in percent."""
    whole, at, found = sum(parts.values()) or 1.0, 0.0, []
    for name, value in parts.items():
        width = 100 * value / whole
        found.append({"name": name, "value": value, "start": round(at, 2), "width": round(width, 2)})
        at += width
    return found


FILTERS = {
    "maintenance": maintenance_text,
    "duration": optional(duration),
    "ago": optional(ago),
    "clock": optional(clock),
    "upcoming": optional(upcoming),
    "size": optional(size),
    "percent": percent,
    "thousands": thousands,
    "plural": plural,
    "shares": shares,
}
