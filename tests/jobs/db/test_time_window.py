"""Windows of queues, on days when the clock changes too."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.db.time_window import TimeWindow
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
    st.times(),
    st.times(),
    st.datetimes(min_value=datetime(2024, 1, 1), max_value=datetime(2030, 1, 1)),
)
def test_the_next_change_is_a_change_and_the_first(
    zone: str, start: object, end: object, now: datetime
) -> None:
    text = f"{start:%H:%M}-{end:%H:%M} {zone}"
    if f"{start:%H:%M}" == f"{end:%H:%M}":
        return
    window, moment = TimeWindow.parse(text), now.replace(tzinfo=UTC).timestamp()
    change = window.next_change(moment)
    was = window.is_open(moment)
    assert change > moment
    assert window.is_open(change) != was
    for part in range(1, 40):
        assert window.is_open(moment + (change - moment) * part / 40.0001) == was


@pytest.mark.parametrize("text", ["22-7", "22:00-22:00", "25:00-07:00", "22:00-07:00 Mars/Base", ""])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="window"):
        TimeWindow.parse(text)
