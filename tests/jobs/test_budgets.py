"""Budgets of owners: what is used of them, when they warn, and what waits once they are used up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from infra.database import Database
from infra.settings import read_settings
from jobs.board.access import Access, read_access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.budgets import count_used, foresight, shown_budgets
from jobs.db.audit import list_acts
from jobs.db.budgets import PERIODS, find_budget, list_budgets, period_at, remove_budget, set_budget
from jobs.db.nodes import register
from jobs.db.outcomes import fail
from jobs.db.queries import Filter, list_jobs
from jobs.db.tables import attempts, budgets
from jobs.estimate import estimate, verdict
from jobs.farm import Farm
from jobs.receipts import receipt_lines
from jobs.report import Scope, make_report
from jobs.report_page import as_html
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.pending_reason import pending_reason
from jobs.scheduler.waiting import what_jobs_wait_for
from render.errors import BadInput
from tests.support.asgi import ask
from tests.support.studio import Studio, run, studio_of_commands

HOUR = 36.0
"""Price of a slot hour: a cent for each slot second."""
DAY_S = 86_400.0


@pytest.fixture
def studio(database: Database, tmp_path: Path) -> Studio:
    with database.write() as connection:
        register(connection, "n", address="127.0.0.1", slots=2, device="cpu", vram_bytes=None)
    settings = read_settings({"store_url": str(tmp_path / "images")})
    return Studio(Farm(settings=settings, database=database, url=""), tmp_path / "images")


def give(studio: Studio, owner: str, amount: float, **more: Any) -> None:
    with studio.database.write() as connection:
        made = set_budget(connection, owner, amount, **{"price": HOUR, **more})
        if made.counted == made.began:
            # Whenever a test runs, all that it renders is within the period.
            earlier = {"began": budgets.c.began - DAY_S, "counted": budgets.c.counted - DAY_S}
            connection.execute(update(budgets).where(budgets.c.owner == owner).values(earlier))


def used(studio: Studio, owner: str = "anna") -> Any:
    return next(each for each in count_used(studio.database, every_s=0.0) if each.owner == owner)


def test_what_was_used_is_what_receipts_have(studio: Studio) -> None:
    give(studio, "anna", 10)
    studio.render("a vase", "a mug", "a bowl")
    first = used(studio)
    assert 2.0 < first.used < 3.5 and first.state == "open"
    # Counted on from there, by pieces: no second counts twice, and none is lost.
    studio.render("a lamp")
    for _ in range(3):
        last = used(studio)
    with studio.database.read() as connection:
        report = make_report(connection, Scope())
    assert last.slot_seconds == pytest.approx(report["owners"]["anna"]["slot_seconds"], rel=0.01)
    line = next(each for each in receipt_lines(report, HOUR) if each["name"] == "anna")
    assert line["budget"] == 10 and line["budget_used"] == pytest.approx(line["price"], rel=0.01)
    assert "Budgets" in as_html(report)
    # What is deleted has been used all the same, also where it was not counted yet.
    with studio.database.write() as connection:
        connection.execute(update(budgets).values(counted=budgets.c.began, slot_seconds=0.0))
        ids = [row["id"] for row in list_jobs(connection, Filter(), 10)]
    studio.delete(jobs=tuple(sorted(ids)))
    assert used(studio).slot_seconds == pytest.approx(last.slot_seconds, rel=0.01)


def test_once_it_is_used_up_new_jobs_wait_and_those_that_have_begun_end(studio: Studio) -> None:
    give(studio, "anna", 1.5)
    _, ids = studio.submit("a vase", "a mug", "a bowl")
    begun = studio.start()
    assert len(begun) == 2
    assert used(studio).state == "used up"
    _, (theirs,) = studio.submit("a lamp", owner="bob")
    with studio.database.write() as connection:
        # A node dies: the job has begun, so it is placed again; the third one waits, and bob's does not.
        fail(connection, begun[0].attempt, "lost", "n", "losses")
        connection.execute(update(attempts).where(attempts.c.id == begun[1].attempt).values(ended=None))
    again = {assignment.job for assignment in studio.start()}
    waiting = next(job for job in ids if job not in {each.job for each in begun})
    assert waiting not in again and (begun[0].job in again or theirs in again)
    with studio.database.read() as connection:
        reason = pending_reason(connection, waiting)
        assert str(reason).startswith("the budget of anna, ") and "of 1.50 used until" in str(reason)
        assert what_jobs_wait_for(connection, ids).keys() == {waiting}
        line = estimate(connection)[0]
        assert line["held"] == 1 and not line["fits"]
        assert verdict(line).startswith("no: 1 job waits for the budget of anna")
    give(studio, "anna", 100)
    with studio.database.read() as connection:
        assert what_jobs_wait_for(connection, ids) == {}
        assert "budget" not in str(pending_reason(connection, waiting))


def test_the_next_period_begins_with_nothing(studio: Studio) -> None:
    give(studio, "anna", 1, period="day")
    studio.render("a vase", "a mug")
    assert used(studio).state == "used up"
    _, (job,) = studio.submit("a bowl")
    assert dispatch(studio.database, "n") == []
    with studio.database.write() as connection:
        # As if all of it had been the day before yesterday.
        day = 2 * DAY_S
        earlier = {"created": attempts.c.created - day, "ended": attempts.c.ended - day}
        connection.execute(update(attempts).values(earlier))
        connection.execute(update(budgets).values(began=budgets.c.began - day, ends=budgets.c.ends - day))
    assert len(dispatch(studio.database, "n")) == 1, "a period that is over holds nobody"
    fresh = used(studio)
    assert fresh.used < 0.5 and fresh.began > 0 and fresh.state == "open"
    assert job


def test_it_warns_at_eighty_percent_and_foresees_what_is_needed(studio: Studio) -> None:
    give(studio, "anna", 2.4)
    studio.render("a vase", "a mug")
    assert used(studio).state == "warned"
    with studio.database.read() as connection:
        (shown,) = shown_budgets(connection)
    assert "is warned" in str(foresight(shown))
    assert "unfinished jobs need 5.00 more" in str(foresight(shown | {"needed": 5.0}))
    assert foresight(shown | {"state": "open", "used": 0.0}) is None


@pytest.mark.parametrize(
    ("owner", "amount", "more", "told"),
    [
        ("anna", -1, {}, "amount"),
        ("anna", float("nan"), {}, "amount"),
        ("anna", 1, {"price": 0}, "price"),
        ("anna", 1, {"price": None}, "price: missing; give the price"),
        ("anna", 1, {"period": "year"}, "period"),
        ("", 1, {}, "owner"),
        ("x" * 129, 1, {}, "owner"),
    ],
)
def test_what_is_no_budget_is_refused(
    studio: Studio, owner: str, amount: float, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        give(studio, owner, amount, **more)
    with studio.database.write() as connection:
        assert list_budgets(connection) == []
        with pytest.raises(BadInput, match="has no budget"):
            remove_budget(connection, "anna")


def test_a_changed_budget_keeps_what_was_used_unless_its_period_changes(studio: Studio) -> None:
    give(studio, "anna", 10)
    studio.render("a vase")
    before = used(studio)
    give(studio, "anna", 20, price=None)
    with studio.database.read() as connection:
        found = find_budget(connection, "anna")
        assert found is not None and found.slot_seconds == before.slot_seconds and found.price == HOUR
    give(studio, "anna", 20, period="week")
    assert used(studio).slot_seconds == pytest.approx(before.slot_seconds, rel=0.05)


@given(
    st.sampled_from(PERIODS),
    st.sampled_from(["UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata"]),
    st.floats(1.6e9, 2.2e9),
)
def test_a_period_has_its_moment_and_begins_at_midnight(period: str, zone: str, moment: float) -> None:
    began, ends = period_at(period, zone, moment)
    assert began <= moment < ends
    assert period_at(period, zone, ends)[0] == ends and period_at(period, zone, began) == (began, ends)
    for edge in (began, ends):
        local = datetime.fromtimestamp(edge, ZoneInfo(zone))
        assert (local.hour, local.minute) == (0, 0)
        assert period != "month" or local.day == 1
        assert period != "week" or local.weekday() == 0


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """A farm of commands."""
    yield from studio_of_commands(tmp_path, monkeypatch)


def test_commands_set_list_and_remove_and_tell_of_it(
    shell: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    give(shell, "anna", 50)
    shell.render("a vase", "a mug")
    assert run("budget", "set", "anna", "1", "--price", str(HOUR)) == 0
    assert "of the budget of anna" in capsys.readouterr().out
    assert run("budget", "list", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["budgets"]
    assert (found["owner"], found["state"], found["period"]) == ("anna", "used up", "month")
    assert run("submit", "a bowl", "--size", "64x64", "--owner", "anna", "--json") == 0
    submitted = json.loads(capsys.readouterr().out)
    assert "new jobs wait for the next period" in submitted["notes"][0]
    assert run("list", "--json", "--state", "queued") == 0
    (listed,) = json.loads(capsys.readouterr().out)["jobs"]
    assert listed["waits_for"].startswith("the budget of anna, ")
    assert run("estimate") == 0
    told = capsys.readouterr().out
    assert "The budget of anna is used up" in told
    assert run("estimate", "--json") == 0
    assert json.loads(capsys.readouterr().out)["queues"][0]["held"] == 1
    assert run("budget", "remove", "anna") == 0
    assert run("budget", "remove", "anna") == 2
    assert run("budget", "set", "anna", "5") == 2
    assert "give the price" in capsys.readouterr().err
    with shell.database.read() as connection:
        acts = [(act["action"], act["target"]) for act in list_acts(connection, 2)]
    assert acts == [("remove budget", "owner anna"), ("set budget", "owner anna")]


def test_the_board_and_rest_set_and_show_budgets_for_operators(shell: Studio, tmp_path: Path) -> None:
    app = make_app(Board(shell.farm, Access()))
    page = ask(app, "/budgets", headers={"accept": "text/html"})
    give(shell, "anna", 50)
    shell.render("a vase", "a mug")
    headers = {"cookie": page.headers["set-cookie"].partition(";")[0], "content-type": "application/json"}
    assert b"nobody is limited" in page.body
    body = json.dumps({"amount": 1, "price": HOUR}).encode()
    made = ask(app, "/api/v1/budgets/anna", "PUT", body, headers).json
    assert made["owner"] == "anna" and made["state"] == "used up"
    assert ask(app, "/api/v1/budgets", headers=headers).json["budgets"][0]["amount"] == 1
    assert ask(app, "/api/v1/budgets/bob", "PUT", b'{"amount": 1}', headers).status == 400
    shown = ask(app, "/budgets", headers=headers | {"accept": "text/html"}).body.decode()
    assert "used up" in shown and "of 1.00" in shown
    assert "of the budget of anna" in ask(app, "/", headers=headers | {"accept": "text/html"}).body.decode()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"operator={'o' * 30}\nviewer={'v' * 30}\n")
    guarded = make_app(Board(shell.farm, read_access(str(tokens), b"s" * 32)))
    viewer = {"authorization": f"Bearer {'v' * 30}", "accept": "text/html"}
    assert ask(guarded, "/api/v1/budgets", headers=viewer).status == 403
    assert ask(guarded, "/budgets", headers=viewer).status == 403
    assert b"budget of anna" not in ask(guarded, "/", headers=viewer).body
    assert ask(guarded, "/api/v1/budgets/anna", "DELETE", headers=viewer).status == 403
    assert ask(app, "/api/v1/budgets/anna", "DELETE", headers=headers).json["removed"] is True
