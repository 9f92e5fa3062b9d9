"""Measured rates: slot seconds per unit of work, by model and kind of device.

A job's work is the number of latents that its evaluations cover over all steps, known from its plan. Rates
are measured on finished jobs; recent jobs have the largest weight.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from infra.database import insert_or_change
from jobs.db.tables import rates

_DECAY = 0.9
"""Weight of the earlier measurements when another job finishes."""
Rates = dict[str, float]
"""Model -> slot seconds per unit of work, on the slowest kind of device with a measurement."""


def record_rate(connection: Connection, model: str, device: str, work: float, slot_seconds: float) -> None:
    """Add the measurement of a job that one attempt rendered completely."""
    first = {"model": model, "device": device, "work": work, "slot_seconds": slot_seconds}
    update = {
        "work": rates.c.work * _DECAY + work,
        "slot_seconds": rates.c.slot_seconds * _DECAY + slot_seconds,
    }
    connection.execute(insert_or_change(connection, rates, update).values(**first))


def read_rates(connection: Connection) -> Rates:
    """The current rates."""
    pace = func.max(rates.c.slot_seconds / rates.c.work).label("pace")
    return {
        row.model: row.pace for row in connection.execute(select(rates.c.model, pace).group_by(rates.c.model))
    }


def slot_seconds_left(known: Rates, model: str, work: float | None, progress: float) -> float | None:
    """The slot seconds that a job still needs; None without a rate or a plan."""
    if work is None or model not in known:
        return None
    return known[model] * work * (1 - progress)
