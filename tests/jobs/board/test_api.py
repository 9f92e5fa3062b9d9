"""The API does what the command line does, and no input makes it fall over."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from infra.database import Database
from jobs.board.app import status_of
from jobs.db.board_queries import (
    active_jobs,
    attempts_of,
    batch_rows,
    page_jobs,
    queue_rates,
    show_batch,
)
from jobs.db.claims import claim, make_ready
from jobs.db.heartbeats import heartbeat
from jobs.db.job_order import Order
from jobs.db.nodes import register
from jobs.db.outcomes import finish
from jobs.db.queries import Filter
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.errors import KNOWN
from jobs.scheduler.dispatcher import dispatch
from render.spec import Spec
from tests.support.board import RunningBoard


def test_no_input_makes_a_server_error(quiet_board: RunningBoard) -> None:
    """schemathesis over every operation; driven by hand, since its pytest plugin lags behind pytest."""
    schema = schemathesis.openapi.from_url(f"{quiet_board.address}api/v1/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    paths = quiet_board.ask("/api/v1/openapi.json").json["paths"]
    assert len(operations) == sum(len(methods) for methods in paths.values()) > 10
    for operation in operations:

        @settings(max_examples=12, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def attack(case: Any) -> None:
            case.call_and_validate(checks=[not_a_server_error])

        attack()
    # What was taken must not spoil what is read later.
    for path in ("queues", "jobs", "batches", "nodes", "estimate"):
        assert quiet_board.ask(f"/api/v1/{path}").status == 200


def test_a_job_from_submission_to_cancelling(quiet_board: RunningBoard) -> None:
    ask = quiet_board.ask
    image = {"prompt": "an api vase", "size": "128x128", "queue": "api", "priority": 70}
    made = ask("/api/v1/jobs", "POST", image)
    assert (made.status, made.json["new"], made.json["queue"]) == (201, 1, "api")
    job = made.json["job"]
    assert ask("/api/v1/jobs", "POST", image).json["known"] == 1, "the same image is the same job"
    for verb, state in (
        ("pause", "paused"),
        ("resume", "queued"),
        ("cancel", "cancelled"),
        ("retry", "queued"),
    ):
        assert ask(f"/api/v1/jobs/{job[:9]}/{verb}", "POST").json["state"] == state
    refused = ask(f"/api/v1/jobs/{job}/resume", "POST")
    assert refused.status == 409 and "is queued" in refused.json["error"]
    assert ask(f"/api/v1/jobs/{job}/priority", "PUT", {"priority": 5}).status == 200
    shown = ask(f"/api/v1/jobs/{job}").json
    assert (shown["priority"], [event["new"] for event in shown["events"]][-1]) == (5, "queued")
    assert ask("/api/v1/jobs/cancel", "POST", {"queue": "api"}).json["jobs"] == 1
    assert {row["id"] for row in ask("/api/v1/jobs?queue=api").json["jobs"]} == {job}


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"prompt": "x", "size": "100x100"}, 400, "multiple of 8"),
        ({"prompt": " "}, 400, "prompt"),
        ({"prompt": "x", "seed": -1}, 400, "seed: -1 is not a whole number from 0 to"),
        ({"prompt": "x", "seed": "many"}, 400, "seed: 'many' is not a whole number"),
        ({"prompt": "x", "steps": 2.5}, 400, "steps: 2.5 is not a whole number"),
        ({"prompt": 5}, 400, "prompt: 5 is not text"),
        ({"seed": 5}, 422, "prompt"),
        ({"prompt": "x", "boxes": ["0,0,0.01,1: a vase"]}, 400, "boxes.width: 0.01 is out of range"),
        ({"prompt": "x", "init": "/etc/passwd"}, 422, "init"),
        ({"prompt": "x", "size": "64x64", "width": 128}, 400, "contradicts width 128"),
        ({"prompt": "x", "model": "/etc"}, 400, "new to this farm"),
        ({"prompt": "x", "refiner": "/etc"}, 422, "refiner"),
        ({"prompt": "x", "deadline": "soon"}, 400, "deadline"),
        ({"prompt": "half \ud800"}, 400, "not text"),
        ({"prompt": "x", "colour": "red"}, 422, "colour"),
        ({"prompt": "x", "priority": 101}, 422, "priority"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    quiet_board: RunningBoard, body: dict[str, Any], status: int, part: str
) -> None:
    before = quiet_board.ask("/api/v1/batches").json
    answer = quiet_board.ask("/api/v1/jobs", "POST", body)
    assert answer.status == status and part in answer.json["error"]
    assert quiet_board.ask("/api/v1/batches").json == before


def test_a_queue_s_rules_are_changed_one_by_one(quiet_board: RunningBoard) -> None:
    def rules(change: dict[str, Any]) -> dict[str, Any]:
        assert quiet_board.ask("/api/v1/queues/late", "PUT", change).status == 200
        (queue,) = (each for each in quiet_board.ask(path).json["queues"] if each["name"] == "late")
        return {name: queue[name] for name in ("priority", "time_window", "paused")}

    path = "/api/v1/queues"
    assert rules({"priority": 60, "time_window": "22:00-07:00 Europe/Paris"})["priority"] == 60
    assert quiet_board.ask(f"{path}/late", "PUT", {"time_window": "late"}).status == 400
    assert quiet_board.ask(f"{path}/late", "PUT", {"paused": None}).status == 422
    changed = {"priority": 60, "time_window": None, "paused": True}
    assert rules({"time_window": None, "paused": True}) == changed


def test_every_known_error_has_a_status() -> None:
    def all_below(kind: type[Exception]) -> list[type[Exception]]:
        return [kind, *(each for below in kind.__subclasses__() for each in all_below(below))]

    for kind in (each for root in KNOWN for each in all_below(root)):
        assert 400 <= status_of(kind.__new__(kind)) < 600


@pytest.mark.parametrize(
    "wanted", [Filter(), Filter(states=("queued",)), Filter(search="3% VAS"), Filter(owner="b")]
)
@pytest.mark.parametrize("sort", ["-created", "queue", "-priority", "took"])
def test_pages_hold_every_job_once_there_and_back(database: Database, wanted: Filter, sort: str) -> None:
    order = Order.parse(sort)
    specs = (Spec(prompt=f"vase {number % 7}%", seed=number, width=128, height=128) for number in range(57))
    asked = (BatchItem(row=number, custom_id=str(number), spec=spec) for number, spec in enumerate(specs))
    submit(database, asked, "many", JobOptions(owner="anna"))
    with database.read() as connection:
        whole = [row["id"] for row in page_jobs(connection, wanted, 1000, order=order).jobs]
        there, place, pages = [], None, []
        while True:
            page = page_jobs(connection, wanted, 10, after=place, order=order)
            pages.append(page)
            there += [row["id"] for row in page.jobs]
            if page.older is None:
                break
            place = order.cursor(str(page.older))
        assert there == whole and len(set(whole)) == len(whole)
        assert len(whole) == {"3% VAS": 8}.get(wanted.search or "", 0 if wanted.owner else 57)
        if len(pages) > 1:
            assert pages[-1].newer is not None
            back = page_jobs(connection, wanted, 10, before=pages[-1].newer, order=order)
            assert back.jobs == pages[-2].jobs


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs?after=nonsense", 400),
        ("/jobs?after=nan_x&q=%ff", 200),
        ("/jobs?q=%00", 400),
        ("/jobs?state=lost", 400),
        ("/jobs?sort=prompt", 400),
        ("/jobs?sort=queue&after=default_0", 200),
        ("/jobs?sort=-took&after=default_0", 400),
        ("/jobs/zz", 404),
        ("/jobs/%00", 400),
        ("/batches/none", 400),
        ("/batches/none?after=%C2%B2", 400),
        ("/compare?left=zz", 404),
        ("/submit?job=zz", 404),
        ("/live/jobs/zz/image/x", 404),
        ("/nowhere", 404),
    ],
)
def test_pages_say_what_is_wrong_with_an_address(quiet_board: RunningBoard, path: str, status: int) -> None:
    answer = quiet_board.ask(path, accept="text/html")
    assert answer.status == status and b"Traceback" not in answer.body


def test_what_the_pages_read_is_read_on_both_databases(database: Database) -> None:
    asked = iter([BatchItem(row=1, custom_id="one", spec=Spec(prompt="a vase", width=128, height=128))])
    batch = submit(database, asked, "one", JobOptions(owner="anna")).batch
    with database.write() as connection:
        register(connection, "n", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    ((_, attempt, _),) = dispatch(database, "n")
    with database.write() as connection:
        part = claim(connection, attempt, "n", "s")
        assert part is not None
        make_ready(connection, part, "127.0.0.1:1")
        change_state(connection, part.job, "placing", "rendering", "", expected_fence=part.fence)
        live = {"stage": 0, "stages": 2, "step": 1, "steps": 5, "ranks": {"0": {"phases": {"model": 1.5}}}}
        heartbeat(connection, part, 0.1, live)
    with database.read() as connection:
        (living,) = active_jobs(connection, 5)
        assert (living["prompt"], living["live"]["stages"]) == ("a vase", 2)
        (tried,) = attempts_of(connection, part.job)
        assert tried["members"][0]["live"]["ranks"]["0"]["phases"] == {"model": 1.5}
        (row,) = batch_rows(connection, batch, 5)
        assert (row["custom_id"], row["width"]) == ("one", 128)
    with database.write() as connection:
        finish(connection, part, "r" * 64, 1.0)
    with database.read() as connection:
        assert queue_rates(connection)["default"] == {"images": 1, "megapixels": pytest.approx(0.016384)}
        assert show_batch(connection, batch)["jobs"] == {"done": 1}
