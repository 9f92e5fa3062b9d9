"""Moments as people write them: `2026-11-21T22:00+01:00`, `22:00`, `tomorrow 7am`, `fri 22:00`, `12h`.

dateparser reads them. What has no zone is by this machine's clock. A time of the day without a day is the
next such time, or for what lies in the past the last one; a day without a time begins at midnight.
"""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

from render.errors import BadInput

_LONGEST = 80
"""Characters."""
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"(?:in\s+)?(\d+(?:\.\d+)?)\s*([mhdw])(?:\s+ago)?", re.ASCII)
_ONLY_NUMBERS = re.compile(r"[\d\s.,]*")
_RELATIVE_DAYS = ("yesterday", "today", "tomorrow")
_WEEKDAY = re.compile(r"\b(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\b")
_WEEK = timedelta(days=7)


def parse_moment(
    name: str, text: str | None, *, past: bool = False, at: datetime | None = None
) -> float | None:
    """Seconds since the epoch of a moment that lies ahead, or in the `past`; None for no text.

    `at` is the time by this machine's clock. Raises `BadInput` of the field `name`.
    """
    if not text or not text.strip():
        return None
    try:
        return _parsed(text.strip(), at or datetime.now(), past).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        wanted = (
            "is not a duration or a date; use e.g. 12h, yesterday 22:00 or 2026-11-21T22:00"
            if past
            else "is not a date and time; use e.g. 22:00, tomorrow 7am or 2026-11-21T22:00+01:00"
        )
        raise BadInput(name, text[:_LONGEST], wanted) from exc


def _parsed(text: str, at: datetime, past: bool) -> datetime:
    words = " ".join(text.lower().split())
    if (span := _SPAN.fullmatch(words)) is not None:
        return _after(span, at, back=words.endswith(" ago") or (past and not words.startswith("in ")))
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        # A number alone may be anything.
        if len(text) > _LONGEST or _ONLY_NUMBERS.fullmatch(text):
            raise
    from dateparser.date import DateDataParser

    settings = {
        "RELATIVE_BASE": at,
        "PREFER_DATES_FROM": "past" if past else "future",
        "RETURN_TIME_AS_PERIOD": True,
    }
    data = DateDataParser(languages=["en"], settings=settings).get_date_data(words)
    if data.date_obj is None:
        raise ValueError(text)
    if data.period != "time" and words in _RELATIVE_DAYS:
        return datetime.combine(data.date_obj.date(), time(0))
    return _nearest(data.date_obj, at, past) if _WEEKDAY.match(words) else data.date_obj


def _after(span: re.Match[str], at: datetime, back: bool) -> datetime:
    """In seconds that pass: the clock may be changed in between."""
    length = timedelta(**{_UNITS[span[2]]: float(span[1])}).total_seconds()
    return datetime.fromtimestamp(at.astimezone().timestamp() + (-length if back else length))


def _nearest(moment: datetime, at: datetime, past: bool) -> datetime:
    """Of a weekday, today's if it lies on the right side of now: dateparser takes another week's."""
    other = moment + _WEEK if past else moment - _WEEK
    return other if (other <= at if past else other > at) else moment
