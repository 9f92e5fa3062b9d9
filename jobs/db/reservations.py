"""Reservations: the slots of whole groups, taken in one transaction."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, insert, select

from infra.database import now
from jobs.db.claims import is_there
from jobs.db.records import PlacedGroup
from jobs.db.state_machine import change_states
from jobs.db.tables import attempts, jobs, members, nodes


def reserve(
    connection: Connection,
    groups: Sequence[PlacedGroup],
    reason: Callable[[PlacedGroup], str],
    slots: Sequence[tuple[int, ...]] | None = None,
    follows: str | None = None,
) -> dict[str, tuple[str, int]]:
    """Reserve the slots of whole groups for their queued jobs. Returns (attempt, fence) by job.

    Jobs that are no longer queued are left out. All groups share the same statements, because every statement
    is a round trip to the database. `slots` gives the slot numbers of one group on each of its nodes; without
    it, any free slots are taken. `follows` is the attempt whose warm group goes on with this one.
    """
    if slots is None:
        assigned = _assign(groups, free_slots(connection, {node for group in groups for node in group.slots}))
    else:
        assigned = {group.job: [list(each) for each in slots] for group in groups}
    reasons = {group.job: reason(group) for group in groups if group.job in assigned}
    fences = change_states(connection, reasons, "queued", "placing", fence=jobs.c.fence + 1)
    if not fences:
        return {}
    made = {job: (uuid.uuid4().hex[:16], fence) for job, fence in fences.items()}
    rows = [
        {"id": attempt, "job": job, "fence": fence, "secret": secrets.token_hex(32), "follows": follows}
        for job, (attempt, fence) in made.items()
    ]
    connection.execute(insert(attempts).values(created=now()), rows)
    held = [
        {"attempt": made[group.job][0], "node": node, "place": place, "slots": assigned[group.job][place]}
        for group in groups
        if group.job in made
        for place, node in enumerate(group.slots)
    ]
    connection.execute(insert(members), held)
    return made


def _assign(groups: Sequence[PlacedGroup], free: dict[str, list[int]]) -> dict[str, list[list[int]]]:
    """Slot numbers for each node of each group, by job. A group that does not fit is left out as a whole."""
    assigned: dict[str, list[list[int]]] = {}
    for group in groups:
        if all(len(free.get(node, ())) >= count for node, count in group.slots.items()):
            assigned[group.job] = [[free[node].pop(0) for _ in range(n)] for node, n in group.slots.items()]
    return assigned


def free_slots(connection: Connection, names: set[str]) -> dict[str, list[int]]:
    """By node: the numbers of its slots that no active attempt holds."""
    holding = (
        select(members.c.node, members.c.slots)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(members.c.node.in_(names), attempts.c.ended.is_(None), is_there())
    )
    taken: dict[str, set[int]] = {name: set() for name in names}
    for row in connection.execute(holding):
        taken[row.node].update(row.slots)
    available = connection.execute(select(nodes.c.name, nodes.c.slots).where(nodes.c.name.in_(names)))
    return {row.name: [n for n in range(row.slots) if n not in taken[row.name]] for row in available}
