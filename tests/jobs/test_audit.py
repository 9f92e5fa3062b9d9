"""The audit log: every act of people leaves a line, in the transaction of the act."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from infra.database import Database
from infra.settings import Settings
from jobs.board.access import Access, new_token
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.cli.farm_options import this_user
from jobs.cli.main import cli
from jobs.db import tables
from jobs.db.audit import list_acts, record, session_secret
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.farm import Farm
from render.spec import Spec
from tests.support.asgi import ask


@pytest.fixture
def farm(database: Database) -> Farm:
    url = database.engine.url.render_as_string(hide_password=False)
    with database.write() as connection:
        connection.execute(
            insert(tables.nodes).values(name="n1", address="a", slots=1, device="cpu", lease_until=0.0)
        )
    return Farm(settings=Settings(), database=database, url=url)


def submit_two(farm: Farm) -> tuple[str, list[str]]:
    items = [
        BatchItem(row=seed, custom_id=f"r{seed}", spec=Spec(prompt="a vase", width=64, height=64, seed=seed))
        for seed in (1, 2)
    ]
    receipt = submit(farm.database, items, "two", JobOptions(owner="me"))
    return receipt.batch, [job for _, job in receipt.jobs]


def acts(farm: Farm) -> list[tuple[str, str, str, dict[str, Any]]]:
    with farm.database.read() as connection:
        found = list_acts(connection, 100)
    return [(act["who"], act["action"], act["target"], act["details"]) for act in reversed(found)]


def test_every_act_of_the_command_line_leaves_a_line(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORALE_DATABASE_URL", farm.url)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    batch, (one, two) = submit_two(farm)
    old = tmp_path / "chorale" / "logs" / "ffff-0001-n1.log"
    old.parent.mkdir(parents=True)
    old.write_text("over")

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, words)
        assert (result.exit_code == 0) == (code == 0), result.output
        return result.output

    run("cancel", one)
    run("cancel", one, code=3)
    run("pause", "--batch", batch)
    run("priority", two, "90")
    run("queues", "night", "--limit", "3")
    run("queues", "night")
    run("queues", "night", "--delete")
    run("drain", "n1")
    run("drain", "n2", code=2)
    run("undrain", "n1")
    run("gc", "--older-than", "0")
    run("gc", "--older-than", "0", "--yes")
    me = this_user()
    assert acts(farm) == [
        (me, "cancel", f"job {one}", {}),
        (me, "pause", f"batch {batch}", {"jobs": 1}),
        (me, "priority", f"job {two}", {"priority": 90}),
        (me, "set queue", "queue night", {"group_limit": 3}),
        (me, "delete queue", "queue night", {}),
        (me, "drain", "node n1", {}),
        (me, "undrain", "node n1", {}),
        (me, "delete files", "the farm", {"items": 1, "bytes": 4}),
    ]
    shown = json.loads(run("audit", "--action", "cancel", "--since", "1h", "--json"))["acts"]
    assert [act["target"] for act in shown] == [f"job {one}"]
    assert f"batch {batch}" in run("audit", "--who", me.partition(" ")[0]) and run("audit", "--who", "zz%")


def test_every_act_on_the_board_names_the_token_and_the_address(farm: Farm) -> None:
    batch, (one, two) = submit_two(farm)
    secret, token = new_token("operator", "anna")
    viewer, other = new_token("viewer", "ben")
    app = make_app(Board(farm, Access((token, other))))

    def put(path: str, method: str, body: dict[str, Any], status: int = 200, given: str = secret) -> None:
        headers = {"authorization": f"Bearer {given}", "content-type": "application/json"}
        answer = ask(app, path, method, json.dumps(body).encode(), headers, client="10.0.0.7")
        assert answer.status == status, answer.body

    put(f"/api/v1/jobs/{one}/cancel", "POST", {})
    put(f"/api/v1/jobs/{one}/cancel", "POST", {}, 409)
    put(f"/api/v1/jobs/{two}/cancel", "POST", {}, 403, viewer)
    put("/api/v1/jobs/pause", "POST", {"batch": batch})
    put(f"/api/v1/jobs/{two}/priority", "PUT", {"priority": 7})
    put("/api/v1/queues/night", "PUT", {"group_limit": 2})
    put("/api/v1/nodes/n1", "PUT", {"draining": True})
    form = {"content-type": "application/x-www-form-urlencoded"}
    logged_in = ask(app, "/login", "POST", f"token={secret}".encode(), form, client="10.0.0.7")
    assert logged_in.status == 303
    cookie = logged_in.headers["set-cookie"].partition(";")[0]
    page = ask(app, "/nodes", headers={"cookie": cookie}).body.decode()
    csrf = page.partition('name="csrf_token" value="')[2].partition('"')[0]
    sent = ask(
        app, "/nodes/n1/do", "POST", f"csrf_token={csrf}&draining=no".encode(), form | {"cookie": cookie}
    )
    assert sent.status == 303
    anna = "the board: anna at 10.0.0.7"
    assert acts(farm) == [
        (anna, "cancel", f"job {one}", {}),
        (anna, "pause", f"batch {batch}", {"jobs": 1}),
        (anna, "priority", f"job {two}", {"priority": 7}),
        (anna, "set queue", "queue night", {"group_limit": 2}),
        (anna, "drain", "node n1", {}),
        (anna, "log in", "the board", {"role": "operator"}),
        ("the board: anna at 127.0.0.1", "undrain", "node n1", {}),
    ]
    read = ask(app, "/api/v1/audit?action=drain", headers={"authorization": f"Bearer {viewer}"}).json
    assert [act["target"] for act in read["acts"]] == ["node n1"]


def test_a_line_stands_or_falls_with_its_act(farm: Farm) -> None:
    with farm.database.engine.connect() as connection:
        record(connection, "me", "drain", "node n1")
        connection.rollback()
    assert acts(farm) == []


def test_boards_of_a_farm_share_a_secret(farm: Farm) -> None:
    with farm.database.write() as connection:
        first = session_secret(connection)
    with farm.database.write() as connection:
        assert session_secret(connection) == first and len(first) == 32
