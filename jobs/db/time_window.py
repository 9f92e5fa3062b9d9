"""Time windows of queues: `mon-fri 22:00-07:00 Europe/Paris`, correct across daylight-saving changes.

A window is a range of wall-clock time on some days. Whether it is open depends on the wall clock of its zone,
so an hour that the clock skips does not exist, and an hour that it repeats counts twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import tzlocal

from render.errors import BadInput

_FORM = re.compile(
    r"(?:([a-z,\s-]+?)\s+)?(\d{2}):(\d{2})\s*-\s*(\d{2}):(\d{2})(?:\s+(\S+))?", re.IGNORECASE | re.ASCII
)
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ALL_DAYS = frozenset(range(7))
_MAX_DAYS = 9
"""The next edge of a window is never further away than this."""
_DAY = 24 * 60


@dataclass(frozen=True, kw_only=True)
class TimeWindow:
    """Open from `start` to `end` (not included) on some days; past midnight when `end` is not after `start`.

    A window that goes past midnight belongs to the day on which it opens: `mon-fri 22:00-07:00` is open in
    the first hours of Saturday and not in those of Monday.
    """

    start: int
    end: int
    """Minutes of the wall clock since midnight; `end` may be 24:00."""
    zone: ZoneInfo
    days: frozenset[int] = _ALL_DAYS
    """Days on which it opens; 0 is Monday."""

    @classmethod
    def parse(cls, text: str) -> TimeWindow:
        """Read `[DAYS] HH:MM-HH:MM [ZONE]`, e.g. `mon-fri 22:00-07:00 Europe/Paris`; raises `BadInput`.

        Without a zone it is that of this machine.
        """
        match = _FORM.fullmatch(text.strip())
        if not match:
            fix = "is not [DAYS] HH:MM-HH:MM [ZONE]; use e.g. mon-fri 22:00-07:00 Europe/Paris"
            raise BadInput("window", text, fix)
        start, end = _minutes(text, match[2], match[3]), _minutes(text, match[4], match[5])
        days = _ALL_DAYS if match[1] is None else _days(text, match[1])
        if start == end or (days == _ALL_DAYS and (start, end) == (0, _DAY)):
            fix = "has no edge; leave the window out for all days, or name days, as in sat-sun 00:00-24:00"
            raise BadInput("window", text, fix)
        return cls(start=start % _DAY, end=end, zone=_zone(text, match[6]), days=days)

    def __str__(self) -> str:
        times = f"{_clock(self.start)}-{_clock(self.end)} {self.zone.key}"
        return times if self.days == _ALL_DAYS else f"{_day_text(self.days)} {times}"

    def is_open(self, at: float) -> bool:
        """Is the window open at `at`, in seconds since the epoch?"""
        local = datetime.fromtimestamp(at, self.zone)
        today, minute = local.weekday(), local.hour * 60 + local.minute
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        yesterday = (today - 1) % 7
        return (today in self.days and minute >= self.start) or (yesterday in self.days and minute < self.end)

    def next_change(self, at: float) -> float:
        """The first moment after `at` when the window opens or closes, in seconds since the epoch."""
        today = datetime.fromtimestamp(at, self.zone).date()
        edges = _clock_changes(self.zone, at, at + _MAX_DAYS * 86_400)
        for day in range(-1, _MAX_DAYS):
            for minute in {self.start, self.end, 0}:
                clock = time(minute % _DAY // 60, minute % 60)
                for fold in (0, 1):
                    local = datetime.combine(today + timedelta(days=day), clock, self.zone)
                    edges.append(local.replace(fold=fold).astimezone(UTC).timestamp())
        was_open = self.is_open(at)
        # A skipped or repeated hour moves an edge; only edges where the state changes count.
        return min(edge for edge in edges if edge > at and self.is_open(edge) != was_open)


def local_zone() -> ZoneInfo:
    """The time zone of this machine; UTC if it does not say."""
    try:
        found = tzlocal.get_localzone()
        return found if isinstance(found, ZoneInfo) and found.key != "local" else ZoneInfo("UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo("UTC")


def has_zone(text: str) -> bool:
    """Whether the text of a window names its zone."""
    match = _FORM.fullmatch(text.strip())
    return match is not None and match[6] is not None


def _minutes(text: str, hours: str, minutes: str) -> int:
    found = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or found > _DAY:
        raise BadInput("window", text, "has an invalid time; use 00:00 to 24:00")
    return found


def _zone(text: str, name: str | None) -> ZoneInfo:
    if name is None:
        return local_zone()
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        # A folder of the time zone database, as in "Europe", is an OSError.
        raise BadInput("window", text, f"has an unknown time zone, {name!r}; use e.g. Europe/Paris") from exc


def _days(text: str, given: str) -> frozenset[int]:
    """`mon-fri`, `fri-mon` or `mon,wed,sat-sun`."""
    found: set[int] = set()
    for part in given.lower().split(","):
        first, hyphen, last = (each.strip() for each in part.partition("-"))
        if first not in _DAYS or (last if hyphen else first) not in _DAYS:
            raise BadInput(
                "window", text, f"has an unknown day, {part.strip()!r}; use mon to sun, as in mon-fri"
            )
        start, count = _DAYS.index(first), (_DAYS.index(last or first) - _DAYS.index(first)) % 7 + 1
        found |= {(start + number) % 7 for number in range(count)}
    return frozenset(found)


def _day_text(days: frozenset[int]) -> str:
    """The shortest way to write some days: runs of three or more with a hyphen."""
    first = next(day for day in range(7) if day in days and (day - 1) % 7 not in days)
    parts: list[str] = []
    run: list[str] = []
    for number in range(8):
        day = (first + number) % 7
        if number < 7 and day in days:
            run.append(_DAYS[day])
        elif run:
            parts.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else run[0])
            run = []
    return ",".join(parts)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


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
