"""The report and the estimate add up what attempts have taken."""

from typing import Any

import pytest
from sqlalchemy import select, update

from infra.database import Database
from jobs.db.claims import claim, make_ready
from jobs.db.nodes import register
from jobs.db.outcomes import fail, finish
from jobs.db.queues import set_queue
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import attempts, jobs
from jobs.estimate import estimate
from jobs.report import Scope, as_html, headline, make_report
from jobs.scheduler.dispatcher import dispatch
from render.spec import Spec


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


def end_all(farm: Database, seconds: float, reason: str | None = None) -> list[str]:
    """Place what can be placed, and end it after so many seconds of rendering."""
    ended = []
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
    page = as_html(made)
    assert "night &amp; day" in page and "vase &lt;" in page and "<vase" not in page
    assert headline(made) == "Chorale: 1 failed, 1 queued"


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
