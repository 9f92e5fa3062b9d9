"""Moments as people write them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.moments import parse_moment
from render.errors import BadInput

AT = datetime(2026, 11, 20, 21, 30)
"""A Friday."""


@pytest.fixture(autouse=True, scope="module")
def zone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Paris")
        time.tzset()
        yield
    time.tzset()


def shown(text: str, *, past: bool = False, at: datetime = AT) -> str:
    found = parse_moment("deadline", text, past=past, at=at)
    assert found is not None
    return f"{datetime.fromtimestamp(found):%a %d %H:%M}"


@pytest.mark.parametrize(
    ("text", "ahead", "past"),
    [
        ("22:00", "Fri 20 22:00", "Thu 19 22:00"),
        ("07:00", "Sat 21 07:00", "Fri 20 07:00"),
        ("21:29", "Sat 21 21:29", "Fri 20 21:29"),
        ("tomorrow 7am", "Sat 21 07:00", "Sat 21 07:00"),
        ("7:15 pm tomorrow", "Sat 21 19:15", "Sat 21 19:15"),
        ("Yesterday", "Thu 19 00:00", "Thu 19 00:00"),
        ("tonight 22:00", "Fri 20 22:00", "Fri 20 22:00"),
        ("today at noon", "Fri 20 12:00", "Fri 20 12:00"),
        ("midnight", "Sat 21 00:00", "Fri 20 00:00"),
        ("12am", "Sat 21 00:00", "Fri 20 00:00"),
        ("fri 22:00", "Fri 20 22:00", "Fri 13 22:00"),
        ("friday", "Fri 27 00:00", "Fri 20 00:00"),
        ("Mon, 7 AM", "Mon 23 07:00", "Mon 16 07:00"),
        ("in 2h", "Fri 20 23:30", "Fri 20 23:30"),
        ("2h ago", "Fri 20 19:30", "Fri 20 19:30"),
        ("3 days ago", "Tue 17 21:30", "Tue 17 21:30"),
        ("next monday 9am", "Mon 23 09:00", "Mon 23 09:00"),
        ("21 nov 2026 22:00", "Sat 21 22:00", "Sat 21 22:00"),
        ("90m", "Fri 20 23:00", "Fri 20 20:00"),
        ("7d", "Fri 27 21:30", "Fri 13 21:30"),
        ("2026-11-21T22:00+01:00", "Sat 21 22:00", "Sat 21 22:00"),
        ("2026-11-21", "Sat 21 00:00", "Sat 21 00:00"),
    ],
)
def test_a_moment_is_read_as_it_is_meant(text: str, ahead: str, past: str) -> None:
    assert (shown(text), shown(text, past=True)) == (ahead, past)


def test_the_clock_of_the_wall_counts_across_summer_time() -> None:
    # In the night to the 25th of October the clock goes back from 3 to 2.
    before = datetime(2026, 10, 24, 22, 0)
    assert shown("tomorrow 7am", at=before) == "Sun 25 07:00"
    assert shown("in 9h", at=before) == "Sun 25 06:00"


@pytest.mark.parametrize(
    "text", ["7", "soon", "25:00", "13pm", "0am", "tomorrow friday", "10:60", "9999999999d", "5 apples"]
)
@pytest.mark.parametrize("past", [False, True])
def test_what_is_no_moment_is_refused(text: str, past: bool) -> None:
    with pytest.raises(BadInput, match=r"deadline: .* is not a d\w+ (or|and) .*; use e\.g\. "):
        parse_moment("deadline", text, past=past, at=AT)


@given(st.text(max_size=20), st.booleans())
def test_any_text_is_a_moment_or_refused(text: str, past: bool) -> None:
    with suppress(BadInput):
        parse_moment("since", text, past=past)


def test_no_text_is_no_moment() -> None:
    assert parse_moment("deadline", None) is None and parse_moment("deadline", " ") is None
