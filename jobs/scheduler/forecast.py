"""Forecast of when each queue will be empty, from measured rates. Pure; the time is an argument.

A fluid model: queues take slots by priority while their time windows are open, up to their limits. How single
groups fit is ignored, so this is an estimate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jobs.db.time_window import TimeWindow

HORIZON_S = 60 * 86_400.0
"""A queue that is not empty after so long has no forecast."""
_TICK_S = 1e-3


@dataclass(frozen=True, kw_only=True)
class Load:
    """The remaining work of a queue. `most_slots` is what its limit allows, None without one."""

    queue: str
    priority: float
    slot_seconds: float
    most_slots: int | None = None
    window: TimeWindow | None = None
    paused: bool = False


def forecast(loads: Iterable[Load], slots: int, moment: float) -> dict[str, float | None]:
    """When each queue will be empty, in seconds since the epoch; None for not within `HORIZON_S`."""
    waiting = sorted((load for load in loads if not load.paused), key=lambda load: -load.priority)
    left = {load.queue: load.slot_seconds for load in waiting}
    ends: dict[str, float | None] = {load.queue: None for load in loads}
    at, horizon = moment, moment + HORIZON_S
    while at < horizon and slots > 0:
        for queue in [name for name, seconds in left.items() if seconds <= 0]:
            ends[queue] = at
            del left[queue]
        if not left:
            break
        given = _shares([load for load in waiting if load.queue in left], slots, at)
        events = [at + left[queue] / count for queue, count in given.items() if count]
        events += [
            load.window.next_change(at) for load in waiting if load.window is not None and load.queue in left
        ]
        if not events:
            break
        until = min(events)
        for queue, count in given.items():
            rest = left[queue] - count * (until - at)
            # Seconds since the epoch have a resolution of about a quarter of a microsecond.
            left[queue] = rest if rest > count * _TICK_S else 0.0
        at = until
    return ends


def _shares(waiting: list[Load], slots: int, at: float) -> dict[str, int]:
    given: dict[str, int] = {}
    for load in waiting:
        is_open = load.window is None or load.window.is_open(at)
        most = slots if load.most_slots is None else min(slots, load.most_slots)
        given[load.queue] = most if is_open else 0
        slots -= given[load.queue]
    return given
