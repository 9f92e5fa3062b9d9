"""Counts what owners with a budget have used, from the same slot time as receipts."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, func, select

from infra.database import Database, now
from jobs.db.budgets import Budget, find_budget, list_budgets, note_counted, period_at
from jobs.db.rates import read_rates, slot_seconds_left
from jobs.db.state_machine import ENDED
from jobs.db.tables import jobs
from jobs.farm import Farm
from jobs.report import spent_by_owner

EVERY_S = 10.0
_log = logging.getLogger(__name__)


def count_used(database: Database, every_s: float = EVERY_S) -> list[Budget]:
    """Count on from where it was counted last, for budgets for which that is `every_s` ago; returns all.

    Only the attempts of that time are read. Raises `ServiceError`.
    """
    with database.read() as connection:
        known = list_budgets(connection)
        moment: float = connection.execute(select(now())).scalar_one() if known else 0.0
        due = [each for each in known if _is_due(each, moment, every_s)]
        if not due:
            return known
        counted = {each.owner: _counted(each, moment) for each in due}
        spent = {
            since: spent_by_owner(connection, since, moment)
            for since in {values["since"] for values in counted.values()}
        }
    with database.write() as connection:
        for each in due:
            values = counted[each.owner]
            since = values.pop("since")
            values["slot_seconds"] += spent[since].get(each.owner, 0.0)
            if note_counted(connection, each, counted=moment, **values):
                _tell(each, Budget(**{**each.__dict__, "counted": moment, **values}))
        return list_budgets(connection)


def needed_by_owner(connection: Connection) -> dict[str, float]:
    """Slot seconds that the unfinished jobs of each owner still need, as far as rates are known."""
    rates = read_rates(connection)
    work = func.sum(jobs.c.work * (1 - jobs.c.progress)).label("work")
    active = jobs.c.state.not_in((*ENDED, "paused"))
    columns = select(jobs.c.owner, jobs.c.model, work).where(active, jobs.c.work.is_not(None))
    found: dict[str, float] = defaultdict(float)
    for row in connection.execute(columns.group_by(jobs.c.owner, jobs.c.model)):
        found[row.owner] += slot_seconds_left(rates, row.model, row.work, 0.0) or 0.0
    return dict(found)


def shown_budgets(connection: Connection) -> list[dict[str, Any]]:
    """All budgets as JSON has them; `needed` is what the unfinished jobs of the owner are going to cost."""
    known = list_budgets(connection)
    needed = needed_by_owner(connection) if known else {}
    return [
        each.to_dict() | {"needed": round(needed.get(each.owner, 0.0) / 3600 * each.price, 4)}
        for each in known
    ]


def budget_notes(farm: Farm, owner: str) -> list[str]:
    """What whoever submits jobs of an owner is told: that the budget is nearly, or wholly, used."""
    with farm.database.read() as connection:
        found = find_budget(connection, owner)
        moment = connection.execute(select(now())).scalar_one()
    if found is None or found.state == "open" or found.ends <= moment:
        return []
    held = "; new jobs wait for the next period" if found.state == "used up" else ""
    return [f"{found.text} are used{held}"]


def foresight(budget: dict[str, Any]) -> str | None:
    """What is to be said of a budget of `shown_budgets`: that it is nearly used, or that it will not do."""
    money = f"{budget['used']:,.2f} of {budget['amount']:,.2f}"
    text = f"The budget of {budget['owner']} is {budget['state']}: {money}"
    left = budget["amount"] - budget["used"]
    if budget["needed"] > max(left, 0.0):
        return f"{text}; unfinished jobs need {budget['needed']:,.2f} more"
    return None if budget["state"] == "open" else text


def _is_due(budget: Budget, moment: float, every_s: float) -> bool:
    # One that was counted later than now was before the database's clock was set back.
    return moment - budget.counted >= every_s or moment < budget.counted or moment >= budget.ends


def _counted(budget: Budget, moment: float) -> dict[str, float]:
    """From when it has to be counted, and what the row begins with: anew in a new period."""
    if budget.began <= moment < budget.ends:
        return {"since": min(budget.counted, moment), "slot_seconds": budget.slot_seconds}
    began, ends = period_at(budget.period, budget.zone, moment)
    return {"since": began, "slot_seconds": 0.0, "began": began, "ends": ends}


def _tell(before: Budget, after: Budget) -> None:
    if after.state != before.state and after.state != "open":
        held = "; new jobs wait" if after.state == "used up" else ""
        _log.warning("%s are used%s", after.text, held)
