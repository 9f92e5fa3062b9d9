"""Windows of queues, on days when the clock changes too."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
import tzlocal
from hypothesis import given
from hypothesis import strategies as st

from jobs.db.time_window import TimeWindow, has_zone
from render.errors import BadInput

PARIS = ZoneInfo("Europe/Paris")
ZONES = ["UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]


def at(*fields: int, zone: ZoneInfo = PARIS) -> float:
    return datetime(*fields, tzinfo=zone).timestamp()  # type: ignore[arg-type]


def test_a_night_is_open_past_midnight() -> None:
    night = TimeWindow.parse("22:00-07:00 Europe/Paris")
    assert not night.is_open(at(2026, 11, 21, 21, 59))
    assert night.is_open(at(2026, 11, 21, 22, 0))
    assert night.is_open(at(2026, 11, 22, 6, 59))
    assert not night.is_open(at(2026, 11, 22, 7, 0))
    assert night.next_change(at(2026, 11, 21, 12, 0)) == at(2026, 11, 21, 22, 0)
    assert night.next_change(at(2026, 11, 21, 23, 0)) == at(2026, 11, 22, 7, 0)


@pytest.mark.parametrize(("evening", "hours"), [((2026, 3, 28), 8), ((2026, 10, 24), 10), ((2026, 6, 1), 9)])
def test_a_night_is_as_long_as_the_clock_makes_it(evening: tuple[int, int, int], hours: int) -> None:
    night = TimeWindow.parse("22:00-07:00 Europe/Paris")
    opens = night.next_change(at(*evening, 12, 0))
    assert (night.next_change(opens) - opens) / 3600 == hours


def test_an_edge_in_the_skipped_hour_falls_on_its_end() -> None:
    # In Paris, on 2026-03-29, 02:00 to 03:00 does not exist.
    window = TimeWindow.parse("02:30-04:00 Europe/Paris")
    opens = window.next_change(at(2026, 3, 29, 0, 0))
    assert datetime.fromtimestamp(opens, UTC) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


@given(
    st.sampled_from(ZONES),
    st.sampled_from(["", "mon-fri", "sat,sun", "fri-mon", "wed", "mon,wed-thu,sun"]),
    st.integers(0, 1439),
    st.integers(0, 1440),
    st.datetimes(min_value=datetime(2024, 1, 1), max_value=datetime(2030, 1, 1)),
)
def test_the_next_change_is_a_change_and_the_first(
    zone: str, days: str, start: int, end: int, now: datetime
) -> None:
    if start == end or (start, end) == (0, 1440):
        return
    text = f"{days} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02} {zone}"
    window, moment = TimeWindow.parse(text), now.replace(tzinfo=UTC).timestamp()
    change = window.next_change(moment)
    was = window.is_open(moment)
    assert change > moment
    assert window.is_open(change) != was
    for part in range(1, 40):
        assert window.is_open(moment + (change - moment) * part / 40.0001) == was
    assert TimeWindow.parse(str(window)) == window


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    nights = TimeWindow.parse("Mon-Fri 22:00-07:00 Europe/Paris")
    # 2026-11-20 is a Friday.
    assert nights.is_open(at(2026, 11, 20, 23, 0)) and nights.is_open(at(2026, 11, 21, 6, 0))
    assert not nights.is_open(at(2026, 11, 21, 23, 0)) and not nights.is_open(at(2026, 11, 23, 6, 0))
    assert nights.is_open(at(2026, 11, 23, 22, 0))
    assert nights.next_change(at(2026, 11, 21, 8, 0)) == at(2026, 11, 23, 22, 0)


def test_a_weekend_may_be_open_as_a_whole() -> None:
    weekend = TimeWindow.parse("sat,sun 00:00-24:00 Europe/Paris")
    assert weekend.next_change(at(2026, 11, 20, 12, 0)) == at(2026, 11, 21, 0, 0)
    assert weekend.next_change(at(2026, 11, 21, 12, 0)) == at(2026, 11, 23, 0, 0)
    assert str(weekend) == "sat-sun 00:00-24:00 Europe/Paris"


def test_a_window_in_the_hour_that_the_clock_skips_or_repeats() -> None:
    window = TimeWindow.parse("02:15-02:45 Europe/Paris")
    # On 2026-03-29 the hour does not exist; on 2026-10-25 it comes twice.
    assert window.next_change(at(2026, 3, 29, 0, 0)) == at(2026, 3, 30, 2, 15)
    opens, moment = [], at(2026, 10, 25, 0, 0)
    while moment < at(2026, 10, 26, 0, 0):
        moment = window.next_change(moment)
        opens.append(moment)
    assert len(opens) == 5 and [later - opens[0] for later in opens[:4]] == [0, 1800, 3600, 5400]


def test_without_a_zone_it_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    tzlocal.reload_localzone()
    try:
        window = TimeWindow.parse("22:00-07:00")
        assert str(window) == "22:00-07:00 America/New_York"
        assert window.is_open(at(2026, 11, 21, 23, 0, zone=ZoneInfo("America/New_York")))
    finally:
        monkeypatch.undo()
        tzlocal.reload_localzone()
    assert has_zone("22:00-07:00 UTC") and not has_zone("mon 22:00-07:00") and not has_zone("late")


NO_WINDOWS = [
    "22-7",
    "22:00-22:00",
    "25:00-07:00",
    "22:61-07:00",
    "00:00-24:00",
    "22:00-07:00 Mars/Base",
    "22:00-07:00 Europe",
    "22:00-07:00 ../../etc/passwd",
    "noon 22:00-07:00",
    "mon- 22:00-07:00",
    ",mon 22:00-07:00",
    "",
]


@pytest.mark.parametrize("text", NO_WINDOWS)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="window"):
        TimeWindow.parse(text)
