"""Webhooks over HTTP, for operators."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from jobs.board.board import Board
from jobs.board.here import Here
from jobs.db.audit import record
from jobs.webhooks.delivery import send_test
from jobs.webhooks.registry import KINDS, PERS, add_webhook, list_webhooks, remove_webhook, wanted_webhook

KindName = Literal["json", "slack", "teams", "mail"]
PerName = Literal["job", "batch", "queue"]
assert set(KindName.__args__) == set(KINDS) and set(PerName.__args__) == set(PERS)  # type: ignore[attr-defined]


class WebhookBody(BaseModel):
    """Where messages go, and about what."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(min_length=1, max_length=2000, description="http(s)://..., or a mail address.")
    kind: KindName | None = Field(None, description="By the host unless given, else json.")
    per: PerName | None = Field(
        None, description="When a message is sent: queue, or batch where one is given."
    )
    queue: str | None = Field(None, max_length=64, description="Only jobs of this queue.")
    batch: str | None = Field(None, max_length=32, description="Only jobs of this batch.")
    owner: str | None = Field(None, max_length=128, description="Only jobs of this owner.")


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Invalid value; `error` names it and the fix."},
}
router = APIRouter(prefix="/api/v1", responses=_ERRORS, tags=["webhooks"])


def check_operator(request: Request, what: str = "webhooks") -> None:
    """Raise `HTTPException` 403 for others: who is told what is not their business."""
    if request.state.role != "operator":
        raise HTTPException(403, f"{what} are for operators; log in with an operator's token")


@router.get("/webhooks")
def webhooks(board: Here, request: Request) -> dict[str, Any]:
    """List webhooks, without their secrets; of a URL only the host."""
    check_operator(request)
    with board.farm.database.read() as connection:
        return {"webhooks": list_webhooks(connection)}


@router.post("/webhooks", status_code=201)
def add(board: Here, request: Request, body: WebhookBody) -> dict[str, Any]:
    """Send a URL or a mail address messages about jobs that end from now on.

    Messages are signed with `secret`, which is shown only now; mail is not.
    """
    return add_audited(board, request, body.model_dump())


def add_audited(board: Board, request: Request, wanted: dict[str, Any]) -> dict[str, Any]:
    """Add a webhook, and note who did. Raises `BadInput`."""
    checked = wanted_webhook(hosts=board.farm.settings.webhook_hosts, **wanted)
    with board.farm.database.write() as connection:
        made = add_webhook(connection, checked)
        record(connection, request.state.who, "add webhook", f"webhook {made['id']}", url=made["url"])
    return made


@router.post("/webhooks/{id}/test")
def test(board: Here, request: Request, id: str) -> dict[str, Any]:
    """Send a test message now; status 503 when it does not arrive."""
    return {"webhook": id, "url": test_audited(board, request, id)}


def test_audited(board: Board, request: Request, id: str) -> str:
    """Send a test message, and note who did; returns where it went. Raises as `send_test`."""
    place = send_test(board.farm, id)
    with board.farm.database.write() as connection:
        record(connection, request.state.who, "test webhook", f"webhook {id}")
    return place


@router.delete("/webhooks/{id}")
def remove(board: Here, request: Request, id: str) -> dict[str, Any]:
    """Remove a webhook; a message that is on its way is dropped."""
    remove_audited(board, request, id)
    return {"webhook": id, "removed": True}


def remove_audited(board: Board, request: Request, id: str) -> None:
    """Remove a webhook, and note who did. Raises `BadInput`."""
    with board.farm.database.write() as connection:
        remove_webhook(connection, id)
        record(connection, request.state.who, "remove webhook", f"webhook {id}")
