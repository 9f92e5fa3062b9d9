"""The forecast of queues, with a simulated clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.db.time_window import TimeWindow
from jobs.scheduler.forecast import Load, forecast

NOON = 1_000_000_800.0 // 86_400 * 86_400 + 12 * 3600
HOUR = 3600.0


def test_one_queue_takes_its_work_over_the_slots() -> None:
    assert forecast([Load(queue="q", priority=50, slot_seconds=8 * HOUR)], 4, NOON) == {"q": NOON + 2 * HOUR}


def test_the_more_urgent_queue_goes_first_and_its_limit_leaves_slots_to_others() -> None:
    loads = [
        Load(queue="low", priority=10, slot_seconds=3 * HOUR),
        Load(queue="high", priority=90, slot_seconds=4 * HOUR, most_slots=2),
    ]
    # Two slots each until high is done after 2 h, but low needs only 1.5 h of two.
    assert forecast(loads, 4, NOON) == {"high": NOON + 2 * HOUR, "low": NOON + 1.5 * HOUR}


def test_a_window_stops_the_work_until_the_next_night() -> None:
    night = TimeWindow.parse("22:00-02:00 UTC")
    (ends,) = forecast([Load(queue="q", priority=50, slot_seconds=6 * HOUR, window=night)], 1, NOON).values()
    assert ends is not None
    assert abs(ends - (NOON + 10 * HOUR + 24 * HOUR + 2 * HOUR)) < 1


@given(
    st.lists(st.tuples(st.floats(0.1, 1e6), st.integers(0, 100)), min_size=1, max_size=5), st.integers(1, 500)
)
def test_every_forecast_comes_to_an_end(work: list[tuple[float, int]], slots: int) -> None:
    loads = [
        Load(queue=str(number), priority=priority, slot_seconds=seconds)
        for number, (seconds, priority) in enumerate(work)
    ]
    ends = forecast(loads, slots, 1.76e9)
    total = sum(seconds for seconds, _ in work)
    assert max(end or float("inf") for end in ends.values()) == pytest.approx(1.76e9 + total / slots, abs=0.1)


def test_without_slots_or_while_paused_there_is_no_end() -> None:
    load = Load(queue="q", priority=50, slot_seconds=1)
    assert forecast([load], 0, NOON) == {"q": None}
    assert forecast([Load(queue="q", priority=50, slot_seconds=1, paused=True)], 4, NOON) == {"q": None}
