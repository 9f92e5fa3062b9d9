"""How counts, sizes and times are written for people, on the command line and on the board."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import humanize

from infra.printable import printable as printable
from infra.printable import printable_json as printable_json


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 image`, `2,000 images`."""
    return f"{thousands(count)} {noun if count == 1 else many or noun + 's'}"


def thousands(count: float) -> str:
    """`12,345`."""
    return f"{count:,.0f}"


def size(count: float) -> str:
    """Bytes, as `11.2 GiB`."""
    return humanize.naturalsize(count, binary=True)


def percent(share: float) -> str:
    """A share of 1, as `48 %`."""
    return f"{share * 100:.0f} %"


def duration(seconds: float) -> str:
    """`48 s`, `3 min`, `2 h 10 min`, `5 d`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 86_400:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds / 86_400:.0f} d"


def age(moment: float) -> str:
    """How long ago a moment of the database's clock is, as a `duration`."""
    return duration(max(0.0, time.time() - moment))


def counts_by_state(counts: Mapping[str, int]) -> str:
    """`3 queued, 1 done`, or `no jobs`."""
    return ", ".join(f"{thousands(count)} {state}" for state, count in counts.items() if count) or "no jobs"


def maintenance_text(entry: Mapping[str, Any]) -> str:
    """`maintenance sun 02:00-04:00 Europe/Paris`, or when one begins and ends; of an entry of a node."""
    begins, ends = (datetime.fromtimestamp(entry[name]).astimezone() for name in ("begins", "ends"))
    if entry["active"]:
        return f"maintenance until {ends:%a %Y-%m-%d %H:%M %Z}"
    if entry["time_window"]:
        return f"maintenance {entry['time_window']}"
    day = "" if begins.date() == ends.date() else f"{ends:%a %Y-%m-%d} "
    return f"maintenance {begins:%a %Y-%m-%d %H:%M} to {day}{ends:%H:%M %Z}"
