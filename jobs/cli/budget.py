"""`chorale budget`: what the jobs of an owner may cost in a period."""

from __future__ import annotations

import click

from jobs.budgets import count_used, shown_budgets
from jobs.cli.farm_options import farm_options, this_user
from jobs.cli.help import CommandGroup, examples
from jobs.cli.terminal import print_json, print_line, print_table
from jobs.db.audit import record
from jobs.db.budgets import PERIODS, find_budget, remove_budget, set_budget
from jobs.farm import Farm
from jobs.formatting import percent


@click.group(
    cls=CommandGroup,
    epilog=examples("chorale budget set anna 200 --price 1.90", "chorale budget list"),
)
def budget() -> None:
    """Give owners budgets: an amount for each month, at a price for each slot hour.

    At 80 % it is told in list, estimate, submit, reports and on the board. Once a budget is used up, jobs of
    the owner that have not begun wait for the next period; those that have begun are finished.
    """


@budget.command(
    name="set",
    epilog=examples(
        "chorale budget set anna 200 --price 1.90", "chorale budget set shop 50 --period week --price 1.90"
    ),
)
@click.argument("owner")
@click.argument("amount", type=float)
@click.option("--price", type=float, help="Price of a slot hour. [the one that the budget has]")
@click.option("--period", type=click.Choice(PERIODS), help="Period of the amount. [month]")
@farm_options
def set_command(
    farm: Farm, as_json: bool, owner: str, amount: float, price: float | None, period: str | None
) -> None:
    """Give OWNER a budget, or change it. What was used in the present period counts."""
    with farm.database.write() as connection:
        stored = set_budget(connection, owner, amount, price, period)
        kept = {"amount": stored.amount, "price": stored.price, "period": stored.period}
        record(connection, this_user(), "set budget", f"owner {owner}", **kept)
    count_used(farm.database, every_s=0.0)
    with farm.database.read() as connection:
        found = find_budget(connection, owner)
    assert found is not None, "it was just set"
    if as_json:
        print_json(found.to_dict())
    else:
        print_line(f"{found.text} are used")


@budget.command(name="list", epilog=examples("chorale budget list"))
@farm_options
def list_command(farm: Farm, as_json: bool) -> None:
    """List budgets: what is used of each, and what unfinished jobs of the owner are going to need."""
    count_used(farm.database, every_s=0.0)
    with farm.database.read() as connection:
        known = shown_budgets(connection)
        ends = {each["owner"]: find_budget(connection, each["owner"]) for each in known}
    if as_json:
        print_json({"budgets": known})
        return
    rows = []
    for each in known:
        found = ends[each["owner"]]
        money = (f"{each[name]:,.2f}" for name in ("used", "amount", "needed"))
        until = "-" if found is None else found.day
        rows.append((each["owner"], each["state"], *money, percent(each["share"]), each["period"], until))
    head = ("owner", "state", "used", "of", "needed", "share", "period", "until")
    print_table("budgets", head, rows)


@budget.command(name="remove", epilog=examples("chorale budget remove anna"))
@click.argument("owner")
@farm_options
def remove_command(farm: Farm, as_json: bool, owner: str) -> None:
    """Remove the budget of OWNER, whose jobs are not limited then."""
    with farm.database.write() as connection:
        remove_budget(connection, owner)
        record(connection, this_user(), "remove budget", f"owner {owner}")
    if as_json:
        print_json({"owner": owner, "removed": True})
    else:
        print_line(f"{owner} has no budget any more")
