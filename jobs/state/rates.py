"""Measured rates: the slot seconds that a model has taken for its work, on each kind of device.

A job's work is the latents that its evaluations cover over all steps, known from its plan; what a slot
second buys of it is learned from finished jobs, recent ones counting most.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select, update

from infra.database import insert_unless_there, now
from jobs.state.tables import attempts, jobs, members, nodes, rates

_KEPT = 0.9
"""Weight of what is known already when another job is finished."""
Rates = dict[str, float]
"""Model -> slot seconds per unit of work, on the slowest kind of device that it has been seen on."""


def learn(connection: Connection, attempt: str) -> None:
    """Take a finished attempt into account, if it has done all of its job by itself."""
    row = connection.execute(
        select(attempts.c.created, attempts.c.fence, jobs.c.model, jobs.c.work, now().label("moment"))
        .join(jobs, jobs.c.id == attempts.c.job)
        .where(attempts.c.id == attempt)
    ).one()
    if not row.work or row.fence != 1:
        return
    held = connection.execute(
        select(members.c.slots, nodes.c.device)
        .join(nodes, nodes.c.name == members.c.node)
        .where(members.c.attempt == attempt)
    ).all()
    spent = (row.moment - row.created) * sum(len(member.slots) for member in held)
    ours = (rates.c.model == row.model) & (rates.c.device == held[0].device)
    values = {
        "work": rates.c.work * _KEPT + row.work,
        "slot_seconds": rates.c.slot_seconds * _KEPT + spent,
    }
    empty = {"model": row.model, "device": held[0].device, "work": 0.0, "slot_seconds": 0.0}
    connection.execute(insert_unless_there(connection, rates).values(**empty))
    connection.execute(update(rates).where(ours).values(**values))


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
