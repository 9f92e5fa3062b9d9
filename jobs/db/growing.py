"""A group that renders is given more slots of its nodes, and gives them back: the records of it.

The scheduler gives free slots to a part whose supervisor takes them (`elastic`); they are held from then on.
The supervisor finds them with its next heartbeat, and starts ranks there, which join the group between two
steps. The scheduler asks for slots back by `wanted`; they are free when the supervisor says that their ranks
have ended. So do slots whose ranks could not join. What a part was placed with it keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection, exists, insert, select, update

from infra.database import now
from jobs.db.claims import is_active, is_added, is_held, is_there
from jobs.db.records import Assignment
from jobs.db.slot_time import Stay
from jobs.db.tables import attempts, jobs, members


@dataclass(frozen=True, kw_only=True)
class HeldSlots:
    """The slots of a part."""

    joins: bool = False
    """Whether parts of other nodes wait to join the group."""

    slots: tuple[int, ...]
    wanted: tuple[int, ...]
    """Those that it should have; it gives the others back."""


@dataclass(frozen=True, kw_only=True)
class ElasticPart:
    """A part of a running group whose supervisor has said whether it takes more slots."""

    attempt: str
    node: str
    slots: tuple[int, ...]
    takes_more: bool
    nodes: frozenset[str] | None
    """Those that are or were part of the group; None while another one of it has said nothing yet."""
    lent: tuple[int, ...]
    """Those that it was not placed with, and is not giving back."""
    returning: tuple[int, ...]
    """Those that it is giving back."""


def held_slots(connection: Connection, assignment: Assignment) -> HeldSlots | None:
    """What a supervisor has now; None if the part is no longer its own."""
    own = select(members.c.slots, members.c.wanted).where(is_held(assignment))
    row = connection.execute(own).one_or_none()
    if row is None:
        return None
    others = select(members.c.slots_before).where(
        members.c.attempt == assignment.attempt, members.c.place > assignment.place, is_there()
    )
    joins = any(is_added(each) for each in connection.execute(others))
    wanted = row.slots if row.wanted is None else row.wanted
    return HeldSlots(slots=tuple(row.slots), wanted=tuple(wanted), joins=joins)


def elastic_parts(connection: Connection) -> dict[str, list[ElasticPart]]:
    """Those of all jobs that are rendering, by job."""
    statement = (
        select(attempts.c.job, members.c.attempt, members.c.node, members.c.slots)
        .add_columns(members.c.wanted, members.c.slots_before, members.c.elastic)
        .join(attempts, attempts.c.id == members.c.attempt)
        .join(jobs, (jobs.c.id == attempts.c.job) & (jobs.c.fence == attempts.c.fence))
        .where(attempts.c.ended.is_(None), jobs.c.state == "rendering")
        .order_by(attempts.c.created, members.c.place)
    )
    found: dict[str, list[ElasticPart]] = {}
    rows = connection.execute(statement.add_columns(members.c.left_at)).all()
    silent = {row.job for row in rows if row.left_at is None and row.elastic is None}
    nodes: dict[str, set[str]] = {}
    for row in rows:
        nodes.setdefault(row.job, set()).add(row.node)
    for row in rows:
        if row.left_at is not None or row.elastic is None:
            continue
        placed = row.slots_before[0][1] if row.slots_before else row.slots
        wanted = set(row.slots if row.wanted is None else row.wanted)
        part = ElasticPart(
            attempt=row.attempt,
            node=row.node,
            slots=tuple(row.slots),
            takes_more=row.elastic and row.wanted is None,
            nodes=None if row.job in silent else frozenset(nodes[row.job]),
            lent=tuple(slot for slot in row.slots if slot in wanted.difference(placed)),
            returning=tuple(slot for slot in row.slots if slot not in wanted),
        )
        found.setdefault(row.job, []).append(part)
    return found


def add_part(connection: Connection, attempt: str, node: str, slots: Sequence[int]) -> int | None:
    """Have a node join a group that renders, with free slots of its own; the fence of the attempt. The caller
    holds the lock of placement, and has looked that they are free. None if the node has been part of it."""
    parts = connection.execute(select(members).where(members.c.attempt == attempt)).all()
    if not parts or any(part.node == node for part in parts):
        return None
    moment: float = connection.execute(select(now())).scalar_one()
    place = 1 + max(part.place for part in parts)
    row = {"attempt": attempt, "node": node, "place": place, "slots": list(slots)}
    connection.execute(insert(members).values(**row, slots_before=[[moment, []]]))
    fence: int = connection.execute(select(attempts.c.fence).where(attempts.c.id == attempt)).scalar_one()
    return fence


def record_endpoint(connection: Connection, assignment: Assignment, endpoint: str) -> None:
    """The parts that were added find the group at this endpoint; for the supervisor of the first node."""
    own = (attempts.c.id == assignment.attempt) & exists().where(is_held(assignment))
    connection.execute(update(attempts).where(own).values(rendezvous=endpoint))


def part_left(connection: Connection, attempt: str, node: str) -> None:
    """A part that was added is not there any more, or never came; the group goes on without it."""
    own = (members.c.attempt == attempt) & (members.c.node == node) & is_there()
    connection.execute(update(members).where(own).values(left_at=now()))


def give_slots(connection: Connection, attempt: str, node: str, slots: Iterable[int]) -> bool:
    """Give free slots of its node to a part that takes them. The caller holds the lock of placement, and has
    looked that they are free. False if the part takes none any more."""
    row = _locked(connection, attempt, node)
    if row is None or not row.elastic or row.wanted is not None:
        return False
    _change(connection, row, [*row.slots, *slots])
    return True


def ask_back(connection: Connection, attempt: str, node: str, slots: Collection[int]) -> None:
    """Have a part give slots back, as soon as its ranks have ended there."""
    row = _locked(connection, attempt, node)
    if row is not None:
        wanted = [slot for slot in (row.slots if row.wanted is None else row.wanted) if slot not in slots]
        own = (members.c.attempt == attempt) & (members.c.node == node)
        connection.execute(update(members).where(own).values(wanted=wanted))


def take_back(connection: Connection, assignment: Assignment, slots: Collection[int]) -> None:
    """The ranks of these slots have ended, and the group goes on without them; for its supervisor."""
    row = connection.execute(select(members).where(is_held(assignment)).with_for_update()).one_or_none()
    if row is None or not set(row.slots) & set(slots):
        return
    left = [slot for slot in row.slots if slot not in slots]
    still = row.wanted is not None and not set(left) <= set(row.wanted)
    _change(connection, row, left, row.wanted if still else None)


def slot_stays(row: Any, begin: float, end: float) -> list[Stay]:
    """The slots that a part has had from one moment to another, each with its time. `row` has the attempt's
    `id` and `created`, and `node`, `slots` and `slots_before`."""
    return [
        Stay(attempt=row.id, slot=(row.node, slot), begin=max(begin, since), end=min(end, until))
        for since, until, slots in slot_spans(row, end)
        for slot in slots
    ]


def slot_seconds_of(row: Any, end: float) -> float:
    """The time of all slots of a part until a moment; see `slot_stays`."""
    return sum(max(0.0, until - since) * len(slots) for since, until, slots in slot_spans(row, end))


def slot_spans(row: Any, end: float) -> list[tuple[float, float, list[int]]]:
    """(since, until, slots) of a part, oldest first. `row` has the attempt's `created`, `slots` and
    `slots_before`."""
    before = row.slots_before or []
    moments = [row.created, *(until for until, _ in before), end]
    return list(zip(moments[:-1], moments[1:], [*(slots for _, slots in before), row.slots], strict=True))


def ranks_over_time(parts: Sequence[Any]) -> list[tuple[float, int]]:
    """(since, ranks) of an attempt from its beginning on, from the rows of its parts: as `slot_spans` takes
    them, with `left_at`."""
    counts = Counter[float]()
    for row in parts:
        end = float("inf") if row.left_at is None else row.left_at
        for since, until, slots in slot_spans(row, end):
            counts[since] += len(slots)
            counts[min(until, end)] -= len(slots)
    moments = sorted(moment for moment in counts if moment != float("inf"))
    totals = accumulate(counts[moment] for moment in moments)
    return [
        (moment, ranks)
        for moment, ranks in zip(moments, totals, strict=True)
        if counts[moment] or moment == moments[0]
    ]


def _locked(connection: Connection, attempt: str, node: str) -> Any:
    own = (members.c.attempt == attempt) & (members.c.node == node) & is_there() & is_active(attempt)
    return connection.execute(select(members).where(own).with_for_update()).one_or_none()


def _change(connection: Connection, row: Any, slots: list[int], wanted: list[int] | None = None) -> None:
    moment: float = connection.execute(select(now())).scalar_one()
    before = [*(row.slots_before or ()), [moment, row.slots]]
    own = (members.c.attempt == row.attempt) & (members.c.node == row.node)
    values = {"slots": slots, "wanted": wanted, "slots_before": before}
    connection.execute(update(members).where(own).values(values))
