"""The report and the estimate add up what attempts have taken."""

import csv
import io
from typing import Any

import pytest
from sqlalchemy import select, update

from infra.database import Database, now
from jobs.db.claims import claim, make_ready
from jobs.db.nodes import register, sign_off, take_lease
from jobs.db.outcomes import fail, finish
from jobs.db.queues import set_queue
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, jobs, nodes
from jobs.estimate import estimate
from jobs.receipts import as_csv, receipt_lines
from jobs.report import Scope, headline, make_report
from jobs.report_page import as_html
from jobs.scheduler.dispatcher import dispatch
from render.spec import Spec

OTHER: dict[str, Any] = {"address": "127.0.0.1", "device": "cpu", "vram_bytes": None, "numerics": "x"}


@pytest.fixture
def farm(database: Database) -> Database:
    with database.write() as connection:
        register(connection, "n", address="127.0.0.1", slots=2, device="cpu", vram_bytes=None)
    return database


def submit_jobs(farm: Database, count: int, **options: Any) -> None:
    items = [
        BatchItem(row=n, custom_id=str(n), spec=Spec(prompt=f"vase <{n}>", width=128, height=128))
        for n in range(count)
    ]
    submit(farm, items, "night & day", JobOptions(owner="anna", ranks=1, **options))


def end_all(farm: Database, seconds: float, reason: str | None = None, ago: float | None = None) -> list[str]:
    """Place what can be placed, and end it after so many seconds of rendering, so many seconds ago.

    Without `ago` it ends now, and what has ended before did so as much earlier: a slot has one attempt at a
    time.
    """
    ended = []
    if ago is None:
        with farm.write() as connection:
            earlier = {"created": attempts.c.created - seconds, "ended": attempts.c.ended - seconds}
            connection.execute(update(attempts).values(earlier))
    for node, attempt, _ in dispatch(farm, "n"):
        with farm.write() as connection:
            assignment = claim(connection, attempt, node, "s")
            assert assignment is not None
            make_ready(connection, assignment, "x:1")
            change_state(
                connection, assignment.job, "placing", "rendering", "", expected_fence=assignment.fence
            )
            connection.execute(
                update(attempts).where(attempts.c.id == attempt).values(created=attempts.c.created - seconds)
            )
            if reason is None:
                change_state(
                    connection, assignment.job, "rendering", "publishing", "", expected_fence=assignment.fence
                )
                finish(connection, assignment, "root", seconds / 2)
            else:
                fail(connection, attempt, reason, node)
            past = update(attempts).where(attempts.c.id == attempt)
            moved = ago or 0.0
            connection.execute(
                past.values(created=attempts.c.created - moved, ended=attempts.c.ended - moved)
            )
            ended.append(assignment.job)
    return ended


def test_a_report_tells_what_was_done_lost_and_failed(farm: Database) -> None:
    submit_jobs(farm, 2)
    (first, second) = end_all(farm, 100, "NaN")
    with farm.write() as connection:
        connection.execute(update(jobs).values(not_before=None))
        connection.execute(update(jobs).where(jobs.c.id == second).values(attempts=3))
    with farm.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == first).values(not_before=None))
    end_all(farm, 0, "NaN again")
    with farm.read() as connection:
        states = dict(connection.execute(select(jobs.c.id, jobs.c.state)).all())  # type: ignore[arg-type]
        made = make_report(connection, Scope())
    assert states == {first: "queued", second: "failed"}
    assert made["jobs"] == {"queued": 1, "failed": 1}
    (failed,) = made["failed"]
    assert failed["job"] == second and "NaN again" in failed["reason"] and failed["node"] == "n"
    assert made["missing"] == [first]
    assert made["retries"] == 2
    assert 200 <= made["lost_slot_seconds"] <= made["slot_seconds"] < 260
    (owner,) = made["owners"].values()
    assert (owner["jobs"], owner["failed"]) == (2, 1)
    assert made["reasons"] == [{"reason": failed["reason"], "jobs": 1, "nodes": ["n"]}]
    node = made["nodes"]["n"]
    assert node["failed_attempts"] == 4 and made["estimate"][0]["jobs"] == 1
    for figure in ("slot_seconds", "lost_slot_seconds", "idle_slot_seconds"):
        assert node[figure] == pytest.approx(made[figure])
    page = as_html(made)
    assert "night &amp; day" in page and "vase &lt;" in page and "<vase" not in page
    assert headline(made) == "Chorale: 1 failed, 1 queued"


def test_receipts_of_a_mixed_night_sum_to_the_time_of_the_slots(farm: Database) -> None:
    """Two owners, attempts that are lost and tried again, and a slot that idles in between."""
    submit_jobs(farm, 2)
    (lost,) = {*end_all(farm, 900, "node n sends no heartbeat", ago=2700)[:1]}
    with farm.write() as connection:
        connection.execute(update(jobs).values(not_before=None))
    end_all(farm, 600, ago=1000)
    items = [BatchItem(row=0, custom_id="=x", spec=Spec(prompt="a mug", width=256, height=128))]
    submit(farm, items, "=SUM(A1)", JobOptions(owner="=ben", ranks=1))
    end_all(farm, 300, ago=0)
    with farm.write() as connection:
        # The night began an hour ago.
        connection.execute(update(jobs).values(created=jobs.c.created - 3600))
        connection.execute(update(nodes).values(up_since=nodes.c.up_since - 3600))
    with farm.read() as connection:
        report = make_report(connection, Scope())
    lines = receipt_lines(report, 2.0)
    owners = {line["name"]: line for line in lines if line["kind"] == "owner"}
    (idle,) = (line for line in lines if line["kind"] == "idle")
    whole = sum(line["slot_seconds"] for line in owners.values()) + idle["slot_seconds"]
    assert whole == pytest.approx(2 * 3600, rel=0.01)
    assert owners["anna"]["lost_slot_seconds"] == pytest.approx(1800, rel=0.01) and lost
    assert owners["anna"]["slot_seconds"] == pytest.approx(1800 + 1200, rel=0.01)
    assert owners["=ben"]["megapixels"] == pytest.approx(256 * 128 / 1e6)
    assert owners["=ben"]["price"] == pytest.approx(2.0 * 300 / 3600, rel=0.01)
    per_megapixel = owners["=ben"]["price"] / owners["=ben"]["megapixels"]
    assert owners["=ben"]["price_per_megapixel"] == pytest.approx(per_megapixel, rel=0.01)
    rows = list(csv.DictReader(io.StringIO(as_csv(lines))))
    assert [row["kind"] for row in rows].count("batch") == 2
    # A spreadsheet must not run what a client called itself.
    assert {row["name"][:2] for row in rows if row["name"].startswith("'")} == {"'="}
    assert not any(row["name"].startswith("=") for row in rows)


def test_slots_are_idle_only_while_their_node_was_up(farm: Database) -> None:
    """A node that died and came back, one that signed off, and one that came late."""

    def move(name: str, began: float, **more: Any) -> None:
        row = update(nodes).where(nodes.c.name == name)
        connection.execute(row.values(up_since=now() + began, **more))

    with farm.write() as connection:
        move("n", -3600, lease_until=now() - 2400)
        assert take_lease(connection, "n", "second", slots=2, **OTHER) is None
        move("n", -600)
        assert take_lease(connection, "gone", "first", slots=2, **OTHER) is None
        move("gone", -3000)
        sign_off(connection, "gone", "first")
        assert take_lease(connection, "late", "first", slots=1, **OTHER) is None
        move("late", -60)
    submit_jobs(farm, 1)
    with farm.write() as connection:
        connection.execute(update(jobs).values(created=now() - 7200))
        found = make_report(connection, Scope())["idle_slot_seconds"]
    assert found == pytest.approx(2 * (1200 + 600) + 2 * 3000 + 60, abs=5)


def test_an_estimate_knows_nothing_first_and_then_what_was_measured(farm: Database) -> None:
    submit_jobs(farm, 4, queue="night")
    with farm.write() as connection:
        set_queue(connection, "night", {"priority": 60})
        (line,) = estimate(connection)
    assert (line["jobs"], line["unknown"], line["fits"]) == (4, 4, False)
    end_all(farm, 100)
    with farm.read() as connection:
        (line,) = estimate(connection)
        moment = line["ends"]
    assert (line["jobs"], line["unknown"], line["fits"]) == (2, 0, True)
    assert line["slot_hours"] * 3600 == pytest.approx(200, rel=0.1)
    assert moment is not None
