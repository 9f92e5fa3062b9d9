"""Time windows of queues: `22:00-07:00 Europe/Paris`, correct across daylight-saving changes.

A window is a daily range of wall-clock time. Whether it is open depends on the wall clock of its zone, so an
hour that the clock skips does not exist, and an hour that it repeats counts twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from render.errors import BadInput

_FORM = re.compile(r"(\d{2}):(\d{2})-(\d{2}):(\d{2})(?:\s+(\S+))?")
_MAX_DAYS = 3
"""The next edge of a window is never further away than this."""


@dataclass(frozen=True, kw_only=True)
class TimeWindow:
    """Open from `start` to `end` (not included) each day; past midnight when `end` is not after `start`."""

    start: time
    end: time
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str) -> TimeWindow:
        """Read `HH:MM-HH:MM [Zone]`, UTC without a zone; raises `BadInput`."""
        match = _FORM.fullmatch(text.strip())
        if not match:
            raise BadInput("window", text, "is not HH:MM-HH:MM ZONE; use e.g. 22:00-07:00 Europe/Paris")
        opens_h, opens_m, ends_h, ends_m = (int(part) for part in match.groups()[:4])
        try:
            start, end = time(opens_h, opens_m), time(ends_h, ends_m)
        except ValueError as exc:
            raise BadInput("window", text, "has an invalid time; use 00:00 to 23:59") from exc
        try:
            zone = ZoneInfo(match[5] or "UTC")
        except (ZoneInfoNotFoundError, ValueError) as exc:
            raise BadInput(
                "window", text, f"has an unknown time zone, {match[5]!r}; use e.g. Europe/Paris"
            ) from exc
        if start == end:
            raise BadInput("window", text, "has equal start and end; leave the window out for a whole day")
        return cls(start=start, end=end, zone=zone)

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M} {self.zone.key}"

    def is_open(self, at: float) -> bool:
        """Is the window open at `at`, in seconds since the epoch?"""
        clock = datetime.fromtimestamp(at, self.zone).time().replace(tzinfo=None)
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end

    def next_change(self, at: float) -> float:
        """The first moment after `at` when the window opens or closes, in seconds since the epoch."""
        today = datetime.fromtimestamp(at, self.zone).date()
        edges = _clock_changes(self.zone, at, at + _MAX_DAYS * 86_400)
        for day in range(-1, _MAX_DAYS):
            for clock in (self.start, self.end):
                for fold in (0, 1):
                    local = datetime.combine(today + timedelta(days=day), clock, self.zone)
                    edges.append(local.replace(fold=fold).astimezone(UTC).timestamp())
        was_open = self.is_open(at)
        # A skipped or repeated hour moves an edge; only edges where the state changes count.
        return min(edge for edge in edges if edge > at and self.is_open(edge) != was_open)


def _clock_changes(zone: ZoneInfo, start: float, end: float) -> list[float]:
    """When the zone's UTC offset changes between two moments; by bisection, since zoneinfo has no query."""

    def offset(at: float) -> timedelta | None:
        return datetime.fromtimestamp(at, zone).utcoffset()

    jumps, day = [], 86_400
    for before in range(int(start), int(end), day):
        low, high = before, before + day
        if offset(low) == offset(high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
        jumps.append(float(high))
    return jumps
