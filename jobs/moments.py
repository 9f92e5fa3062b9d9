"""Moments as people write them: `2026-11-21T22:00+01:00`, `22:00`, `tomorrow 7am`, `fri 22:00`, `12h`.

What has no zone is by this machine's clock. A time of the day without a day is the next such time, or for
what lies in the past the last one.
"""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

from render.errors import BadInput

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"(?:in\s+)?(\d+(?:\.\d+)?)\s*([mhdw])(?:\s+ago)?", re.ASCII)
_TIME = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*(am|pm)?", re.ASCII)
_NAMED_TIMES = {"noon": time(12), "midnight": time(0)}
_DAYS = {"yesterday": -1, "today": 0, "tonight": 0, "tomorrow": 1}
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def parse_moment(
    name: str, text: str | None, *, past: bool = False, at: datetime | None = None
) -> float | None:
    """Seconds since the epoch of a moment that lies ahead, or in the `past`; None for no text.

    `at` is the time by this machine's clock. Raises `BadInput` of the field `name`.
    """
    if not text or not text.strip():
        return None
    try:
        words = " ".join(text.lower().split())
        return _parsed(words, text.strip(), at or datetime.now(), past).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        wanted = (
            "is not a duration or a date; use e.g. 12h, yesterday 22:00 or 2026-11-21T22:00"
            if past
            else "is not a date and time; use e.g. 22:00, tomorrow 7am or 2026-11-21T22:00+01:00"
        )
        raise BadInput(name, text[:80], wanted) from exc


def _parsed(words: str, text: str, at: datetime, past: bool) -> datetime:
    if (span := _SPAN.fullmatch(words)) is not None:
        if words.startswith("in ") and words.endswith(" ago"):
            raise ValueError(text)
        length = timedelta(**{_UNITS[span[2]]: float(span[1])})
        # In seconds that pass: the clock may be changed in between.
        moment = at.astimezone().timestamp() + length.total_seconds() * (-1 if past else 1)
        return datetime.fromtimestamp(moment)
    day, clock = _day_and_time(words)
    if day is None and clock is None:
        return datetime.fromisoformat(text)
    if day is None and clock is not None:
        return _nearest(datetime.combine(at.date(), clock), at, timedelta(days=1), past)
    if day in _DAYS:
        return datetime.combine(at.date() + timedelta(days=_DAYS[day]), clock or time(0))
    number = _weekday(day or "")
    that_day = at.date() + timedelta(days=(number - at.weekday()) % 7)
    return _nearest(datetime.combine(that_day, clock or time(0)), at, timedelta(days=7), past)


def _nearest(moment: datetime, at: datetime, step: timedelta, past: bool) -> datetime:
    """The moment itself, or the one a step away, that lies on the right side of now."""
    if past:
        return moment - step if moment > at else moment
    return moment + step if moment <= at else moment


def _day_and_time(words: str) -> tuple[str | None, time | None]:
    """`tomorrow 7am`, `7am tomorrow`, `friday at 22:00`: each may be alone; (None, None) if it is else."""
    parts = words.replace(" at ", " ").replace(",", " ").split()
    names = [part for part in parts if part in _DAYS or _is_weekday(part)]
    rest = " ".join(part for part in parts if part not in names)
    clock = _time(rest) if rest else None
    if len(names) > 1 or (rest and clock is None):
        return None, None
    return (names[0] if names else None), clock


def _time(text: str) -> time | None:
    if text in _NAMED_TIMES:
        return _NAMED_TIMES[text]
    match = _TIME.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None  # a number alone may be anything
    hour, minute = int(match[1]), int(match[2] or 0)
    if match[3]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if match[3] == "pm" else 0)
    return time(hour, minute) if hour < 24 and minute < 60 else None


def _is_weekday(word: str) -> bool:
    return len(word) >= 3 and any(name.startswith(word) for name in _WEEKDAYS)


def _weekday(word: str) -> int:
    return next(number for number, name in enumerate(_WEEKDAYS) if name.startswith(word))
