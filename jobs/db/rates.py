"""Measured rates: the slot seconds that a model has taken for its work, on each kind of device.

A job's work is the latents that its evaluations cover over all steps, known from its plan; what a slot
second buys of it is learned from finished jobs, recent ones counting most.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from infra.database import insert_or_change
from jobs.db.tables import rates

_KEPT = 0.9
"""Weight of what is known already when another job is finished."""
Rates = dict[str, float]
"""Model -> slot seconds per unit of work, on the slowest kind of device that it has been seen on."""


def learn(connection: Connection, model: str, device: str, work: float, slot_seconds: float) -> None:
    """Take a job into account that one attempt has done all of."""
    first = {"model": model, "device": device, "work": work, "slot_seconds": slot_seconds}
    more = {
        "work": rates.c.work * _KEPT + work,
        "slot_seconds": rates.c.slot_seconds * _KEPT + slot_seconds,
    }
    connection.execute(insert_or_change(connection, rates, more).values(**first))


def read_rates(connection: Connection) -> Rates:
    """What is known now."""
    pace = func.max(rates.c.slot_seconds / rates.c.work).label("pace")
    return {
        row.model: row.pace for row in connection.execute(select(rates.c.model, pace).group_by(rates.c.model))
    }


def slot_seconds_left(known: Rates, model: str, work: float | None, progress: float) -> float | None:
    """What a job still takes; None when nobody knows."""
    if work is None or model not in known:
        return None
    return known[model] * work * (1 - progress)
