"""Budgets on the board and by REST, for operators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from jobs.board.board import Board
from jobs.board.here import Here
from jobs.board.posted_forms import handle_form, redirect
from jobs.board.templating import page
from jobs.board.webhooks_api import check_operator
from jobs.budgets import count_used, foresight, shown_budgets
from jobs.db.audit import record
from jobs.db.budgets import PERIODS, Budget, remove_budget, set_budget
from render.errors import BadInput

router = APIRouter()
_PAGES: dict[str, Any] = {"include_in_schema": False}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Invalid value; `error` names it and the fix."},
    403: {"description": "Budgets are for operators."},
}
Owner = Annotated[str, Path(max_length=128)]


class Wanted(BaseModel):
    """A budget; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    amount: float = Field(ge=0, le=1e12, description="Money of a period.")
    price: float | None = Field(None, gt=0, le=1e12, description="Of a slot hour.")
    period: str | None = Field(None, pattern="^(month|week|day)$")


@router.get("/api/v1/budgets", tags=["farm"], responses=_ANSWERS)
def budgets(board: Here, request: Request) -> dict[str, Any]:
    """List budgets: what is used of each, its state (`open`, `warned`, `used up`), and what unfinished jobs
    of the owner need."""
    check_operator(request, "budgets")
    return {"budgets": _shown(board)}


@router.put("/api/v1/budgets/{owner}", tags=["farm"], responses=_ANSWERS)
def put_budget(board: Here, request: Request, owner: Owner, wanted: Wanted) -> dict[str, Any]:
    """Give an owner a budget, or change it. Once it is used up, jobs that have not begun wait."""
    _set(board, request, owner, wanted.amount, wanted.price, wanted.period)
    return next(each for each in _shown(board) if each["owner"] == owner)


@router.delete("/api/v1/budgets/{owner}", tags=["farm"], responses=_ANSWERS)
def delete_budget(board: Here, request: Request, owner: Owner) -> dict[str, Any]:
    """Remove the budget of an owner."""
    _remove(board, request, owner)
    return {"owner": owner, "removed": True}


@router.get("/budgets", **_PAGES)
def budgets_page(request: Request) -> Response:
    """All budgets, and the form for another one."""
    check_operator(request, "budgets")
    return _page(request, {})


@router.post("/budgets", **_PAGES)
async def change(request: Request) -> Response:
    """Set or remove one."""
    return await handle_form(request, _change)


def _change(board: Board, request: Request, form: dict[str, Any]) -> Response:
    given = {name: str(form.get(name) or "") for name in ("owner", "amount", "price", "period")}
    try:
        if form.get("action") == "remove":
            _remove(board, request, given["owner"])
            return redirect("/budgets", f"{given['owner']} has no budget any more")
        amount = _number("amount", given["amount"])
        price = _number("price", given["price"]) if given["price"] else None
        made = _set(board, request, given["owner"], amount, price, given["period"] or None)
    except BadInput as exc:
        return _page(request, given, str(exc))
    return redirect("/budgets", f"The budget of {made.owner} is {made.amount:,.2f} for each {made.period}")


def _number(name: str, text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError as exc:
        raise BadInput(name, text[:40], "is no number; use e.g. 200 or 1.90") from exc


def _set(
    board: Board, request: Request, owner: str, amount: float, price: float | None, period: str | None
) -> Budget:
    with board.farm.database.write() as connection:
        made = set_budget(connection, owner, amount, price, period)
        kept = {"amount": made.amount, "price": made.price, "period": made.period}
        record(connection, request.state.who, "set budget", f"owner {owner}", **kept)
    board.forget_queues()
    return made


def _remove(board: Board, request: Request, owner: str) -> None:
    with board.farm.database.write() as connection:
        remove_budget(connection, owner)
        record(connection, request.state.who, "remove budget", f"owner {owner}")
    board.forget_queues()


def _shown(board: Board) -> list[dict[str, Any]]:
    count_used(board.farm.database)
    with board.farm.database.read() as connection:
        return shown_budgets(connection)


def _page(request: Request, values: dict[str, str], error: str | None = None) -> Response:
    board: Board = request.app.state.board
    given = {
        "budgets": [each | {"text": foresight(each)} for each in _shown(board)],
        "values": dict.fromkeys(("owner", "amount", "price", "period"), "") | values,
        "periods": PERIODS,
        "error": error,
    }
    return page(request, "budgets.html", given, 200 if error is None else 400)
