"""Which queued jobs a round of the dispatcher considers: a few, found by indexes, that hide no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, func, select

from infra.database import now
from jobs.db.budgets import may_begin, used_up
from jobs.db.deleted_jobs import files_left
from jobs.db.dependencies import is_free
from jobs.db.leases import CLOCK_SLACK_S
from jobs.db.outcomes import LONGEST_BACKOFF_S
from jobs.db.queues import DEFAULT_PRIORITY
from jobs.db.rates import Rates
from jobs.db.tables import attempts, jobs, queues
from jobs.scheduler.placement import AGEING_S, Node
from jobs.tags import read_tags

COLUMNS = (
    *("id", "owner", "queue", "least_ranks", "most_ranks", "memory", "require_tag"),
    *("model", "work", "progress"),
)
"""What placement needs to know of a job."""
_PER_OWNER, _MAX_CANDIDATES = 64, 500
_LONGEST = 8
_COUNTED = 1_000
"""Queued jobs whose slot seconds are added up. If there are more, some long jobs start before they must."""


def most_of_an_owner(free: int) -> int:
    """Queued jobs of one queue, owner and priority that a round considers, with so many free slots."""
    return max(_PER_OWNER, free)


def most_candidates(free: int) -> int:
    """Queued jobs that a round considers, with so many free slots."""
    return max(_MAX_CANDIDATES, 2 * free)


def most_of_the_longest(free: int) -> int:
    """Queued jobs of one queue, owner and priority that a round considers for their length alone."""
    return free + _LONGEST


@dataclass(frozen=True)
class Room:
    """Where jobs that need some tags may start."""

    up: Sequence[Node]
    """The nodes that take jobs."""
    free: Mapping[str, int]
    """Their free slots, by name."""
    more: int
    """Slots that count as free beside those of `free`."""

    def candidates(self, tags: frozenset[str]) -> int:
        """How many of such jobs are considered: all for which there may be a slot, one that a reservation may
        be made for while there is none, and none without a node that has the tags: they would hide others."""
        suitable = [node.name for node in self.up if tags <= node.tags]
        free = sum(self.free[name] for name in suitable) + self.more
        return 0 if not suitable else most_of_an_owner(free) if free else 1


def considered(
    connection: Connection, closed: list[str], room: Room, free: int, most: int
) -> list[tuple[Any, int, float]]:
    """(job, its priority, seconds of waiting): the `most` most urgent first, then the longest.

    Only a few for each queue, owner, priority and tags (but enough for all free slots), so that the fifty
    thousand jobs of one owner do not hide all others, nor those that wait for a tag all that need none, and
    so that indexes alone find them, however many are queued.
    The longest are those that may start before their turn (`long_jobs_first`).
    """
    moment: float = connection.execute(select(now())).scalar_one()
    priorities = dict(connection.execute(select(queues.c.name, queues.c.priority)).all())
    queued = (jobs.c.state == "queued") & jobs.c.queue.not_in(closed)
    sources = select(jobs.c.queue, jobs.c.owner, jobs.c.priority, jobs.c.require_tag).where(queued).distinct()
    columns = [jobs.c[name] for name in (*COLUMNS, "created")]
    ready = (jobs.c.not_before.is_(None)) | (jobs.c.not_before <= moment) | _waits_too_long(moment)
    ready &= is_free() & ~files_left()
    if held := {budget.owner for budget in used_up(connection)}:
        ready &= may_begin(held)
    # A group that is still writing its checkpoint ends first.
    stopping = exists().where(attempts.c.job == jobs.c.id, attempts.c.ended.is_(None))
    oldest: list[tuple[Any, int, float]] = []
    longest: list[tuple[Any, int, float]] = []
    for source in connection.execute(sources).all():
        few = room.candidates(read_tags(source.require_tag))
        if not few:
            continue
        among = (jobs.c.state == "queued") & (jobs.c.queue == source.queue) & (jobs.c.owner == source.owner)
        same = jobs.c.priority.is_(None) if source.priority is None else jobs.c.priority == source.priority
        among &= jobs.c.require_tag == source.require_tag
        own = select(*columns).where(among, same, ready, ~stopping)
        first = own.order_by(jobs.c.created, jobs.c.id).limit(few)
        long = own.where(jobs.c.work.is_not(None)).order_by(jobs.c.work.desc())
        long = long.limit(most_of_the_longest(free) if few > 1 else 0)
        priority = source.priority
        if priority is None:
            priority = priorities.get(source.queue, DEFAULT_PRIORITY)
        for found, statement in ((oldest, first), (longest, long)):
            rows = connection.execute(statement).all()
            found += [(row, priority, max(0.0, moment - row.created)) for row in rows]
    oldest.sort(key=lambda each: (-each[1] - each[2] / AGEING_S, each[0].id))
    oldest = oldest[:most]
    known = {row.id for row, _, _ in oldest}
    return [*oldest, *(each for each in longest if each[0].id not in known)]


def queued_seconds(connection: Connection, closed: list[str], rates: Rates) -> float:
    """Slot seconds of the queued jobs of open queues whose rate is known."""
    columns = select(jobs.c.model, (jobs.c.work * (1 - jobs.c.progress)).label("work"))
    counted = columns.where(jobs.c.state == "queued", jobs.c.queue.not_in(closed)).limit(_COUNTED).subquery()
    by_model = select(counted.c.model, func.sum(counted.c.work)).group_by(counted.c.model)
    return sum(rates.get(model, 0.0) * (work or 0.0) for model, work in connection.execute(by_model))


def _waits_too_long(moment: float) -> ColumnElement[bool]:
    """Condition on `jobs`: a job waits for its next try longer than any does, since the database's clock was
    set back."""
    tried = (jobs.c.attempts > 0) | (jobs.c.losses > 0)
    late: ColumnElement[bool] = jobs.c.not_before > moment + LONGEST_BACKOFF_S + CLOCK_SLACK_S
    return tried & late
