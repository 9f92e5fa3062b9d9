"""No job starts that is expected to run into the maintenance of its node; the node is drained meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from infra.database import Database, now
from infra.settings import read_settings
from jobs.board.access import Access, new_token
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.cli.main import cli
from jobs.db import leases, tables
from jobs.db.audit import list_acts
from jobs.db.maintenance import (
    MOST_ENTRIES,
    Maintenance,
    add_maintenance,
    keep_maintenance,
    next_maintenance,
    remove_maintenance,
)
from jobs.db.node_changes import change_node
from jobs.db.nodes import list_nodes, register, renew, take_lease
from jobs.db.rates import record_rate
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.farm import open_farm
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.pending_reason import pending_reason
from jobs.scheduler.placement import Node, RunningGroup, place
from jobs.simulation.setup import from_farm
from render.errors import BadInput
from render.spec import Spec
from tests.support.asgi import ask

INFO = {"address": "127.0.0.1", "device": "cpu", "vram_bytes": None}
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
"""A Monday."""


def placed(nodes: list[Node], *pending: PendingJob, running: tuple[RunningGroup, ...] = ()) -> dict[str, Any]:
    return {group.job: group.slots for group in place(nodes, running, pending, []).placed}


def job(name: str, seconds: float | None, **more: Any) -> PendingJob:
    return PendingJob(job=name, estimated_seconds=seconds, **more)


def test_a_job_starts_only_where_it_ends_in_time() -> None:
    nodes = [Node(name="a", slots=1, maintenance=(100.0, 400.0)), Node(name="b", slots=2)]
    assert placed(nodes, job("short", 90.0)) == {"short": {"a": 1}}
    assert placed(nodes, job("long", 100.0)) == {"long": {"b": 1}}
    assert placed(nodes[:1], job("long", 100.0)) == {}
    assert placed(nodes[:1], job("unknown", None)) == {"unknown": {"a": 1}}, (
        "nobody expects it to run into it"
    )


def test_more_ranks_may_end_in_time_and_fewer_may_not() -> None:
    alone = Node(name="a", slots=4, maintenance=(100.0, 400.0))
    assert placed([alone], job("x", 300.0, most=4)) == {"x": {"a": 4}}
    assert placed([replace(alone, slots=2)], job("x", 300.0, most=4)) == {}
    both = [alone, Node(name="b", slots=1)]
    assert placed(both, job("x", 600.0, most=5)) == {"x": {"b": 1}}, "five ranks would not be done either"


def test_small_jobs_use_the_time_that_is_left() -> None:
    """The node is reserved for the first job from the end of its maintenance on, not from now."""
    node = Node(name="a", slots=1, maintenance=(100.0, 400.0))
    pending = [job("long", 200.0, priority=90), job("short", 50.0)]
    assert placed([node], *pending) == {"short": {"a": 1}}
    busy = RunningGroup(job="y", owner="", queue="default", slots={"a": 1}, ends_in=60.0)
    found = place(
        [node, Node(name="b", slots=1)],
        [busy, replace(busy, job="z", slots={"b": 1}, ends_in=80.0)],
        pending,
        [],
    )
    assert (found.reserved_for, found.reserved) == ("long", {"b"}), "b is free in 80 s, a in 400 s"


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.none() | st.tuples(st.floats(0, 1e4), st.floats(0, 1e4))),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.floats(1, 1e4)), max_size=6),
)
def test_nothing_that_starts_is_expected_to_overlap(
    farm: list[tuple[int, tuple[float, float] | None]], wanted: list[tuple[int, int, float]]
) -> None:
    nodes = [
        Node(name=str(n), slots=slots, maintenance=None if when is None else (when[0], sum(when)))
        for n, (slots, when) in enumerate(farm)
    ]
    pending = [
        job(str(n), seconds, least=least, most=least + more)
        for n, (least, more, seconds) in enumerate(wanted)
    ]
    for group in place(nodes, [], pending, []).placed:
        takes = (pending[int(group.job)].slot_seconds or 0.0) / group.ranks
        for name in group.slots:
            planned = nodes[int(name)].maintenance
            assert planned is None or takes < planned[0]


def test_windows_and_single_times_are_looked_up_alike() -> None:
    nightly = Maintenance(id="a", time_window="22:00-23:00 UTC")
    assert nightly.next(NOON) == (NOON + 36_000, NOON + 39_600)
    assert nightly.next(NOON + 37_000) == (NOON + 37_000, NOON + 39_600)
    assert nightly.next(NOON + 39_600) == (NOON + 36_000 + 86_400, NOON + 39_600 + 86_400)
    once = Maintenance(id="b", begins=NOON + 50, ends=NOON + 150)
    assert once.next(NOON) == (NOON + 50, NOON + 150) and once.next(NOON + 150) is None
    assert next_maintenance([nightly, once], NOON) == (NOON + 50, NOON + 150)
    assert next_maintenance([nightly, once], NOON + 200) == nightly.next(NOON)
    assert next_maintenance([], NOON) is None


def node_of(database: Database, name: str = "n1") -> dict[str, Any]:
    with database.read() as connection:
        return next(node for node in list_nodes(connection) if node["name"] == name)


@pytest.fixture
def farm(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    # So that a lease of an hour is none from before the clock was set back.
    monkeypatch.setattr(leases, "CLOCK_SLACK_S", 7200.0)
    with database.write() as connection:
        register(connection, "n1", slots=1, **INFO)
        connection.execute(update(tables.nodes).values(lease_until=now() + 3600))
    return database


def test_a_node_is_drained_while_it_lasts_and_takes_jobs_again(farm: Database) -> None:
    with farm.write() as connection:
        moment: float = connection.execute(select(now())).scalar_one()
        add_maintenance(connection, "n1", begins=moment + 600, ends=moment + 1200)
    assert node_of(farm)["state"] == "up"
    for later, state, left in ((0, "up", 1), (600, "draining", 1), (1199, "draining", 1), (1200, "up", 0)):
        with farm.write() as connection:
            keep_maintenance(connection, moment + later)
            assert len(list(connection.execute(select(tables.maintenance)))) == left
        assert node_of(farm)["state"] == state, later
        assert node_of(farm)["draining"] is False, "that is what people say"
        until = moment + 1200 if state == "draining" else None
        assert node_of(farm)["maintained_until"] == until


def test_one_that_is_removed_ends_and_draining_by_hand_stays(farm: Database) -> None:
    with farm.write() as connection:
        moment: float = connection.execute(select(now())).scalar_one()
        made = add_maintenance(connection, "n1", ends=moment + 600)
        keep_maintenance(connection)
        change_node(connection, "n1", "me", draining=True)
    assert [each["active"] for each in node_of(farm)["maintenance"]] == [True]
    with farm.write() as connection:
        remove_maintenance(connection, "n1", made["id"])
        keep_maintenance(connection)
    assert node_of(farm)["state"] == "draining" and node_of(farm)["maintenance"] == []
    with farm.write() as connection:
        change_node(connection, "n1", "me", draining=False)
    assert node_of(farm)["state"] == "up"


def test_the_dispatcher_waits_for_the_end_and_says_so(farm: Database) -> None:
    spec = Spec(prompt="a vase", seed=1, width=128, height=128)
    ((_, only),) = submit(
        farm, [BatchItem(row=1, custom_id="1", spec=spec)], "x", JobOptions(owner="me", ranks=1)
    ).jobs
    with farm.write() as connection:
        connection.execute(update(tables.jobs).values(work=1000.0))
        record_rate(connection, "builtin", "cpu", 1.0, 1.0)
        moment: float = connection.execute(select(now())).scalar_one()
        add_maintenance(connection, "n1", begins=moment + 600, ends=moment + 3600)
    assert dispatch(farm, "me") == []
    with farm.read() as connection:
        reason = pending_reason(connection, only) or ""
        assert (
            reason.startswith("the end of the maintenance of node n1 (20") and "it takes about 17" in reason
        )
        assert from_farm(connection).run().makespan_s >= 3600 + 1000 - 5
    assert dispatch(farm, "me", moment=moment + 700) == []
    with farm.read() as connection:
        assert (pending_reason(connection, only) or "").startswith(
            "the end of the maintenance of node n1 (20"
        )
    assert len(dispatch(farm, "me", moment=moment + 3600)) == 1


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ({"window": "22-23"}, "window: '22-23' is not [DAYS] HH:MM-HH:MM"),
        ({}, "maintenance: needs a window such as 22:00-23:00, or an end"),
        ({"window": "22:00-23:00", "ends": 5.0}, "needs a window such as"),
        ({"begins": NOON * 2, "ends": NOON * 2 - 1}, "ends before it begins"),
        ({"begins": 1.0, "ends": 2.0}, "over already"),
    ],
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_mistake_plans_nothing(farm: Database, given_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as refused, farm.write() as connection:
        add_maintenance(connection, "n1", **given_)
    assert sentence in str(refused.value)
    with pytest.raises(BadInput, match="node: 'n2' is unknown"), farm.write() as connection:
        add_maintenance(connection, "n2", window="22:00-23:00")
    with pytest.raises(BadInput, match="'ff' is no maintenance of node n1"), farm.write() as connection:
        remove_maintenance(connection, "n1", "ff")
    with farm.write() as connection:
        for _ in range(MOST_ENTRIES):
            add_maintenance(connection, "n1", window="22:00-23:00 UTC")
    with pytest.raises(BadInput, match="has 20 entries already"), farm.write() as connection:
        add_maintenance(connection, "n1", window="22:00-23:00 UTC")


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, farm: Database, folder: Path) -> Iterator[None]:
    monkeypatch.setenv("CHORALE_DATABASE_URL", farm.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    yield


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_command_plans_lists_and_removes(
    farm: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(*words: str) -> str:
        answer = CliRunner().invoke(cli, ["node", *words], catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        return answer.output

    with environment(monkeypatch, farm, tmp_path):
        assert "Node n1: maintenance sun 02:00-04:00 UTC" in run("maintenance", "n1", "sun 02:00-04:00 UTC")
        made = json.loads(run("maintenance", "n1", "--to", "in 2h", "--json"))["maintenance"]
        assert [each["time_window"] for each in made] == ["sun 02:00-04:00 UTC", None]
        assert made[1]["ends"] - made[1]["begins"] == pytest.approx(7200, abs=60) and made[1]["active"]
        shown = run("maintenance", "n1")
        assert all(each["id"] in shown for each in made)
        run("maintenance", "n1", "--remove", made[0]["id"])
        assert "No maintenance" in run("maintenance", "n1", "--remove", "all")
        refused = CliRunner().invoke(cli, ["node", "maintenance", "n1", "22:00-23:00", "--to", "23:00"])
        assert refused.exit_code != 0
        with farm.write() as connection:
            acts = [act["action"] for act in list_acts(connection, 9)]
        assert acts == ["remove maintenance"] * 2 + ["add maintenance"] * 2
        assert run("restart", "n1").startswith("Node n1 starts no more jobs and restarts once")


def test_an_agent_learns_that_it_is_to_begin_anew_and_forgets_it_then(farm: Database) -> None:
    with farm.write() as connection:
        connection.execute(update(tables.nodes).values(lease_until=0.0))
        assert take_lease(connection, "n1", "one", slots=1, **INFO) is None
        change_node(connection, "n1", "me", restart=True)
    assert node_of(farm)["state"] == "draining" and dispatch(farm, "me") == []
    with farm.write() as connection:
        renewed = renew(connection, "n1", "one", [])
        assert renewed is not None and renewed.restart and not renewed.draining
        connection.execute(update(tables.nodes).values(lease_until=0.0))
        with pytest.raises(BadInput, match="node: 'n1' is down; start its agent on its machine"):
            change_node(connection, "n1", "me", restart=True)
        assert take_lease(connection, "n1", "two", slots=1, **INFO) is None
        renewed = renew(connection, "n1", "two", [])
        assert renewed is not None and not renewed.restart
        change_node(connection, "n1", "me", restart=True)
        change_node(connection, "n1", "me", draining=False)
        renewed = renew(connection, "n1", "two", [])
        assert renewed is not None and not renewed.restart, "whoever undrains it does not want that either"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_board_plans_shows_and_removes(
    farm: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret, operator = new_token("operator", "anna")
    with environment(monkeypatch, farm, tmp_path), open_farm(read_settings({})) as opened:
        app = make_app(Board(opened, Access((operator,))))

        def rest(path: str, method: str = "GET", **body: Any) -> Any:
            headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
            return ask(
                app, f"/api/v1/nodes{path}", method, json.dumps(body).encode() if body else b"", headers
            )

        made = rest("/n1/maintenance", "POST", time_window="sun 02:00-04:00 UTC")
        assert (made.status, made.json["node"], made.json["active"]) == (201, "n1", made.json["active"])
        assert rest("/n1/maintenance", "POST", begins="22:00").status == 400
        assert rest("/n2/maintenance", "POST", ends="in 2h").status == 400
        assert rest("/n1/maintenance/ff", "DELETE").status == 400
        form = {"content-type": "application/x-www-form-urlencoded"}
        logged_in = ask(app, "/login", "POST", f"token={secret}".encode(), form)
        cookie = {"cookie": logged_in.headers["set-cookie"].partition(";")[0]}
        page = ask(app, "/nodes", headers=cookie).body.decode()
        assert "maintenance sun 02:00-04:00 UTC" in page
        csrf = page.partition('name="csrf_token" value="')[2].partition('"')[0]

        def send(**fields: str) -> Any:
            body = urlencode(fields | {"csrf_token": csrf}).encode()
            return ask(app, "/nodes/n1/do", "POST", body, form | cookie)

        assert send(action="maintain", window="", to="in 2h", **{"from": ""}).status == 303
        assert send(action="maintain", window="soon").status == 400
        (node,) = rest("").json["nodes"]
        once = next(each for each in node["maintenance"] if each["time_window"] is None)
        assert once["active"]
        assert send(remove=once["id"]).status == 303
        assert rest(f"/n1/maintenance/{made.json['id']}", "DELETE").status == 200
        assert send(restart="yes").status == 303
        page = ask(app, "/nodes", headers=cookie).body.decode()
        assert "Restarts once nothing runs here" in page and "maintenance sun" not in page
        assert rest("/n1", "PUT", draining=False).status == 200
        assert "Restarts once" not in ask(app, "/nodes", headers=cookie).body.decode()
        assert rest("/n1", "PUT", restart=True).json == {"node": "n1", "restart": True}
