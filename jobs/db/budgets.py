"""Budgets: what the jobs of an owner may cost in a period, at a price for each slot hour.

A budget stops softly: once it is used up, jobs of its owner that have not begun wait for the next period, and
those that have begun are finished. What was used is counted every some seconds (`jobs.budgets`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import tzlocal
from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from infra.database import insert_or_change, now
from jobs.db.names import check_name
from jobs.db.tables import budgets, jobs
from jobs.formatting import percent
from render.errors import BadInput

PERIODS = ("month", "week", "day")
WARNED_AT = 0.8
"""Share of a budget from which on its owner is warned."""
_MOST = 1e12
_CHUNK = 5000
"""Ids of one query: databases limit how many values it may have."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A budget and what was used of it; times in seconds since the epoch, money in the unit of the price."""

    owner: str
    amount: float
    price: float
    """Of a slot hour."""
    period: str
    zone: str
    began: float
    ends: float
    """Of the present period."""
    counted: float
    """Until when it was counted what was used."""
    slot_seconds: float
    """Used in the present period."""

    @property
    def used(self) -> float:
        """Money."""
        return self.slot_seconds / 3600 * self.price

    @property
    def share(self) -> float:
        """What was used, as a share of the amount."""
        return self.used / self.amount if self.amount else 1.0

    @property
    def state(self) -> str:
        """`open`, `warned` or `used up`."""
        return "used up" if self.share >= 1 else "warned" if self.share >= WARNED_AT else "open"

    @property
    def text(self) -> str:
        """`85 % of the budget of anna (170.00 of 200.00 until 2026-12-01)`."""
        money = f"{self.used:,.2f} of {self.amount:,.2f} until {self.day}"
        return f"{percent(self.share)} of the budget of {self.owner} ({money})"

    @property
    def day(self) -> str:
        """When the present period ends, by the clock of its zone."""
        return f"{datetime.fromtimestamp(self.ends, ZoneInfo(self.zone)):%Y-%m-%d}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        names = ("owner", "amount", "price", "period", "zone", "began", "ends", "slot_seconds")
        found = {name: getattr(self, name) for name in names}
        return found | {"used": round(self.used, 4), "share": round(self.share, 6), "state": self.state}


def set_budget(
    connection: Connection, owner: str, amount: float, price: float | None = None, period: str | None = None
) -> Budget:
    """Give an owner a budget, or change it; price and period stay unless they are given.

    What was used in the present period counts, unless the period is another one. Raises `BadInput`.
    """
    check_name("owner", owner, budgets.c.owner)
    known = find_budget(connection, owner)
    if not 0 <= amount <= _MOST:
        raise BadInput("amount", amount, "is no amount of money; use a number from 0")
    price = price if price is not None else known.price if known else None
    if price is None:
        raise BadInput("price", None, "is missing; give the price of a slot hour, e.g. --price 1.90")
    if not 0 < price <= _MOST:
        raise BadInput("price", price, "is no price of a slot hour; use a number above 0")
    period = period or (known.period if known else PERIODS[0])
    if period not in PERIODS:
        raise BadInput("period", period[:40], f"is unknown; use one of {', '.join(PERIODS)}")
    values: dict[str, Any] = {"amount": amount, "price": price}
    if known is None or known.period != period:
        zone, moment = _zone_here(), connection.execute(select(now())).scalar_one()
        began, ends = period_at(period, zone, moment)
        values |= {"period": period, "zone": zone, "began": began, "ends": ends}
        values |= {"counted": began, "slot_seconds": 0.0}
    kept = {} if known is None else {name: getattr(known, name) for name in _COLUMNS if name not in values}
    row = insert_or_change(connection, budgets, values)
    connection.execute(row.values(**{"owner": owner, **kept, **values}))
    found = find_budget(connection, owner)
    assert found is not None, "it was just written"
    return found


_COLUMNS = tuple(column.name for column in budgets.columns if column.name != "owner")


def remove_budget(connection: Connection, owner: str) -> None:
    """An owner without one is not limited. Raises `BadInput` for one who has none."""
    if connection.execute(delete(budgets).where(budgets.c.owner == owner)).rowcount != 1:
        raise BadInput("owner", owner[:80], "has no budget; chorale budget list shows all")


def list_budgets(connection: Connection) -> list[Budget]:
    """All, by owner."""
    rows = connection.execute(select(budgets).order_by(budgets.c.owner))
    return [Budget(**row._mapping) for row in rows]


def find_budget(connection: Connection, owner: str) -> Budget | None:
    """That of an owner, if there is one."""
    row = connection.execute(select(budgets).where(budgets.c.owner == owner)).one_or_none()
    return None if row is None else Budget(**row._mapping)


def note_counted(connection: Connection, before: Budget, **values: float) -> bool:
    """Record what was used, unless somebody else has counted meanwhile."""
    mine = (budgets.c.owner == before.owner) & (budgets.c.counted == before.counted)
    return connection.execute(update(budgets).where(mine).values(**values)).rowcount == 1


def used_up(connection: Connection) -> list[Budget]:
    """The budgets of which nothing is left in the present period."""
    moment = connection.execute(select(now())).scalar_one()
    return [each for each in list_budgets(connection) if each.state == "used up" and each.ends > moment]


def may_begin(owners: Collection[str]) -> ColumnElement[bool]:
    """Condition on `jobs`: the owner is none of these, whose budgets are used up, or the job has begun."""
    return jobs.c.owner.not_in(sorted(owners)) | (jobs.c.fence > 0)


def held_jobs(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """Of these jobs: those that wait for a budget, each with what it waits for."""
    reasons = {each.owner: held_reason(each) for each in used_up(connection)}
    if not reasons:
        return {}
    asked, found = list(ids), dict[str, str]()
    for start in range(0, len(asked), _CHUNK):
        mine = select(jobs.c.id, jobs.c.owner).where(
            jobs.c.id.in_(asked[start : start + _CHUNK]), jobs.c.state == "queued", ~may_begin(reasons)
        )
        found |= {row.id: reasons[row.owner] for row in connection.execute(mine)}
    return found


def count_held(connection: Connection) -> dict[str, tuple[int, str]]:
    """By queue: how many jobs wait for a budget, and one of the reasons."""
    known = {each.owner: each for each in used_up(connection)}
    if not known:
        return {}
    counted = (
        select(jobs.c.queue, func.count().label("jobs"), func.min(jobs.c.owner).label("owner"))
        .where(jobs.c.state == "queued", ~may_begin(known))
        .group_by(jobs.c.queue)
    )
    return {row.queue: (row.jobs, held_reason(known[row.owner])) for row in connection.execute(counted)}


def held_reason(budget: Budget) -> str:
    """Completes the sentence "the job waits for ..."."""
    return f"the budget of {budget.owner}, {budget.used:,.2f} of {budget.amount:,.2f} used until {budget.day}"


def period_at(period: str, zone: str, moment: float) -> tuple[float, float]:
    """(begin, end) of the day, week (from Monday) or month around a moment, by the clock of the zone."""
    here = ZoneInfo(zone)
    midnight = datetime.fromtimestamp(moment, here).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "month":
        first = midnight.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    else:
        days = 7 if period == "week" else 1
        first = midnight - timedelta(days=midnight.weekday() if period == "week" else 0)
        after = first + timedelta(days=days)
    # Sums of naive wall-clock time: a day in which the clock changes has 23 or 25 hours.
    return first.timestamp(), after.timestamp()


def _zone_here() -> str:
    return str(tzlocal.get_localzone_name() or "UTC")
