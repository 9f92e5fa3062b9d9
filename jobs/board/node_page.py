"""The page of the nodes: what they render, and, for operators, draining, comments and tags."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.responses import Response

from jobs.board.board import Board
from jobs.board.live_pages import live_page
from jobs.board.posted_forms import handle_form, redirect
from jobs.db.claims import is_there
from jobs.db.node_changes import cancel_maintenance, change_node, plan_maintenance
from jobs.db.nodes import list_nodes
from jobs.db.tables import attempts, jobs, members
from jobs.moments import parse_moment
from jobs.tags import parse_tags

router = APIRouter(include_in_schema=False)


@live_page(router, "/nodes", "nodes.html")
def node_list(board: Board, request: Request) -> dict[str, Any]:
    held = (
        select(
            members.c.node, members.c.slots, attempts.c.job, jobs.c.spec["prompt"].as_string().label("prompt")
        )
        .join(attempts, attempts.c.id == members.c.attempt)
        .join(jobs, jobs.c.id == attempts.c.job)
        .where(attempts.c.ended.is_(None), is_there())
    )
    with board.farm.database.read() as connection:
        nodes = list_nodes(connection)
        work = [dict(row._mapping) for row in connection.execute(held)]
    for node in nodes:
        by_slot = {slot: each for each in work if each["node"] == node["name"] for slot in each["slots"]}
        node["work"] = [by_slot.get(slot) for slot in range(node["slots"])]
    return {"nodes": nodes}


@router.post("/nodes/{name}/do")
async def change(request: Request, name: str) -> Response:
    """Drain or undrain a node, or change what people say of it."""
    return await handle_form(request, _change)


def _change(board: Board, request: Request, form: dict[str, Any]) -> Response:
    name, who = request.path_params["name"], request.state.who
    with board.farm.database.write() as connection:
        if "draining" in form:
            change_node(connection, name, who, draining=form["draining"] == "yes")
            return redirect("/nodes")
        if "restart" in form:
            change_node(connection, name, who, restart=True)
            return redirect("/nodes", f"node {name} starts no more jobs and restarts once none runs there")
        if form.get("action") == "maintain":
            plan_maintenance(connection, name, who, **_times(form))
            return redirect("/nodes", f"maintenance of node {name} is planned")
        if "remove" in form:
            cancel_maintenance(connection, name, str(form["remove"]), who)
            return redirect("/nodes", f"maintenance of node {name} is removed")
        wanted = set(parse_tags("tag", [form.get("tags") or ""]))
        known = next((node for node in list_nodes(connection) if node["name"] == name), None)
        # The form shows the tags that people gave; those of the agent's settings stay.
        given = set() if known is None else set(known["tags"]) - set(known["own_tags"])
        comment: str | None = str(form.get("comment") or "")
        comment = None if known is not None and comment == known["comment"] else comment
        if comment is not None or wanted != given:
            added, removed = wanted - given, given - wanted
            change_node(connection, name, who, comment=comment, add_tags=added, remove_tags=removed)
    return redirect("/nodes", f"node {name} is changed")


def _times(form: dict[str, Any]) -> dict[str, Any]:
    """When maintenance is, of a form in which an empty field means none."""
    return {
        "window": form.get("window") or None,
        "begins": parse_moment("from", form.get("from")),
        "ends": parse_moment("to", form.get("to")),
    }
