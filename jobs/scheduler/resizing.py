"""Running groups are given free slots, and asked for those that others wait for: `growing`, carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from jobs.db.growing import ElasticPart, add_part, ask_back, give_slots
from jobs.db.leases import lock_placement
from jobs.db.records import QueueRules
from jobs.db.reservations import free_slots
from jobs.scheduler.growing import (
    JOINED_DEVICE,
    ElasticGroup,
    Slots,
    nodes_to_add,
    slots_to_ask_back,
    slots_to_give,
)
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import Node, RunningGroup

Parts = Mapping[str, Sequence[ElasticPart]]
"""Of each job."""


def lent_slots(parts: Parts) -> int:
    """How many slots groups may be asked to give back."""
    return sum(len(part.lent) for own in parts.values() for part in own)


def grow(
    connection: Connection,
    parts: Parts,
    nodes: Sequence[Node],
    running: Sequence[RunningGroup],
    gain_s: float,
) -> bool:
    """Give free slots to groups that end `gain_s` sooner with them. Returns whether any was given."""
    chosen = slots_to_give(nodes, running, _elastic_groups(parts), gain_s)
    if not chosen:
        return False
    lock_placement(connection)
    free = free_slots(connection, {node for slots in chosen.values() for node in slots})
    given = False
    for part, count in _chosen_parts(parts, chosen):
        slots = [free[part.node].pop(0) for _ in range(min(count, len(free[part.node])))]
        given = (bool(slots) and give_slots(connection, part.attempt, part.node, slots)) or given
    return given


def add_nodes(
    connection: Connection,
    parts: Parts,
    nodes: Sequence[Node],
    running: Sequence[RunningGroup],
    gain_s: float,
) -> list[tuple[str, str, int]]:
    """Have free slots of other nodes join groups that end `gain_s` sooner with them. Returns (node, attempt,
    fence) of each new part."""
    chosen = nodes_to_add(nodes, running, _elastic_groups(parts), gain_s)
    if not chosen:
        return []
    lock_placement(connection)
    free = free_slots(connection, {node for slots in chosen.values() for node in slots})
    found = []
    for job, slots in chosen.items():
        attempt = parts[job][0].attempt
        for node, count in slots.items():
            own = [free[node].pop(0) for _ in range(min(count, len(free[node])))]
            fence = add_part(connection, attempt, node, own) if own else None
            if fence is not None:
                found.append((node, attempt, fence))
    return found


def jobs_that_cannot_grow(parts: Parts, nodes: Sequence[Node]) -> frozenset[str]:
    """Those whose groups have said, on each of their nodes, whether they take slots, and do not take those of
    other nodes."""
    joined = {node.name for node in nodes if node.device == JOINED_DEVICE}
    return frozenset(
        job
        for job, own in parts.items()
        if own[0].nodes is not None
        and not (own[0].node in joined and all(part.takes_more or part.returning for part in own))
    )


def shrink(
    connection: Connection,
    parts: Parts,
    nodes: Sequence[Node],
    running: Sequence[RunningGroup],
    waiting: Sequence[PendingJob],
    rules: Sequence[QueueRules],
    queued_s: float,
) -> None:
    """Ask groups for slots that they were lent and that jobs wait for."""
    chosen = slots_to_ask_back(nodes, running, waiting, rules, queued_s, _elastic_groups(parts))
    for part, count in _chosen_parts(parts, chosen):
        ask_back(connection, part.attempt, part.node, part.lent[-count:])


def _elastic_groups(parts: Parts) -> dict[str, ElasticGroup]:
    return {
        job: ElasticGroup(
            takes_nodes=own[0].nodes is not None and all(part.takes_more for part in own),
            nodes=own[0].nodes or frozenset(),
            takes_more=frozenset(part.node for part in own if part.takes_more),
            lent={part.node: len(part.lent) for part in own if part.lent},
            returning={part.node: len(part.returning) for part in own if part.returning},
        )
        for job, own in parts.items()
    }


def _chosen_parts(parts: Parts, chosen: Slots) -> list[tuple[ElasticPart, int]]:
    return [
        (part, chosen[job][part.node])
        for job, own in parts.items()
        if job in chosen
        for part in own
        if chosen[job].get(part.node)
    ]
