"""One agent for each name; a node that the database has forgotten registers again."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from infra.database import Database, now
from jobs.db.nodes import list_nodes, set_draining
from jobs.db.tables import nodes
from jobs.node.health import Problem
from jobs.node.node_lease import NameTaken, NodeLease
from render.errors import BadInput

INFO = {"address": "10.0.0.1", "slots": 2, "device": "cpu", "numerics": "x", "vram_bytes": None}
FULL = Problem(check="home", text="home: /x has 3 bytes free")


def lease(database: Database, address: str = "10.0.0.1") -> NodeLease:
    return NodeLease(database, "n1", INFO | {"address": address})


def run_out(database: Database) -> None:
    with database.write() as connection:
        connection.execute(update(nodes).values(lease_until=now() - 1))


def node(database: Database) -> dict[str, Any]:
    with database.read() as connection:
        (found,) = list_nodes(connection)
    return found


def at_once(lease_: NodeLease) -> NodeLease:
    """Its next renewal is due."""
    lease_._renewed = float("-inf")
    return lease_


def test_a_node_whose_row_is_gone_registers_again_and_stays_drained(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    mine = lease(database)
    assert mine.take([], lambda seconds: False)
    with database.write() as connection:
        set_draining(connection, "n1", True)
    at_once(mine).renew([])
    with database.write() as connection:
        connection.execute(delete(nodes))
    with caplog.at_level(logging.WARNING):
        at_once(mine).renew([FULL])
    assert "registered again" in caplog.text
    found = node(database)
    assert (found["state"], found["draining"], found["slots"], found["address"]) == (
        "unhealthy",
        True,
        2,
        "10.0.0.1",
    )


def test_a_row_of_an_older_state_is_taken_over(database: Database) -> None:
    mine = lease(database)
    mine.take([], lambda seconds: False)
    with database.write() as connection:
        connection.execute(
            update(nodes).values(agent="who was there then", lease_until=now() - 9000, slots=2)
        )
    at_once(mine).renew([])
    with database.read() as connection:
        assert connection.execute(select(nodes.c.agent)).scalar_one() == mine.agent
    assert node(database)["up"]


def test_a_second_agent_of_a_name_is_refused(database: Database) -> None:
    mine, other = lease(database), lease(database, "10.0.0.2")
    mine.take([], lambda seconds: False)

    def renewed_meanwhile(seconds: float) -> bool:
        at_once(mine).renew([])
        return False

    with pytest.raises(BadInput, match=r"name: 'n1' is the name of a running agent at 10\.0\.0\.1; give"):
        other.take([], renewed_meanwhile)
    assert node(database)["address"] == "10.0.0.1"


def test_an_agent_that_died_is_followed_when_its_lease_ends(database: Database) -> None:
    lease(database).take([], lambda seconds: False)
    other = lease(database, "10.0.0.2")

    def dead(seconds: float) -> bool:
        run_out(database)
        return False

    assert other.take([], dead)
    assert node(database)["address"] == "10.0.0.2"
    assert not lease(database).take([], lambda seconds: True), "asked to stop while it waits"


def test_one_that_signed_off_is_followed_at_once(database: Database) -> None:
    first, second = lease(database), lease(database)
    first.take([], lambda seconds: False)
    first.release()
    assert not node(database)["up"]
    assert second.take([], lambda seconds: pytest.fail("nothing to wait for"))
    first.release()
    assert node(database)["up"], "who comes late ends nobody else's lease"


def test_an_agent_whose_name_was_taken_while_it_was_cut_off_ends(database: Database) -> None:
    first, second = lease(database), lease(database, "10.0.0.2")
    first.take([], lambda seconds: False)
    run_out(database)
    second.take([], lambda seconds: False)
    with pytest.raises(NameTaken, match=r"another agent, at 10\.0\.0\.2, has taken the name n1"):
        at_once(first).renew([])
    assert node(database)["address"] == "10.0.0.2"


def test_problems_are_told_at_once_and_end(database: Database) -> None:
    mine = lease(database)
    mine.take([FULL], lambda seconds: False)
    assert node(database)["problems"] == [{"check": "home", "text": FULL.text}]
    mine.renew([])
    assert (node(database)["state"], node(database)["problems"]) == ("up", [])
    mine.renew([FULL])
    assert node(database)["state"] == "unhealthy"
    run_out(database)
    assert (node(database)["state"], node(database)["problems"]) == ("down", [])
