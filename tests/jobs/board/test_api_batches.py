"""Batch files over REST: what the form and the command line do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.settings import read_settings
from jobs.board.access import Access
from jobs.board.board import Board
from jobs.db.submission import JobOptions
from jobs.farm import open_farm
from render.spec.enlarger import BUILTIN_FILE
from tests.support.board import Answer, RunningBoard

_BOUNDARY = "part-of-a-request"
FEED = "SKU;Title;Colour\r\nA-1;Vase;rot\r\nA-2;Tasse;blau\r\n".encode("utf-16")


def send(board: RunningBoard, name: str, data: bytes, **fields: str) -> Answer:
    parts = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
        for field, value in fields.items()
    )
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = parts + head.encode() + data + f"\r\n--{_BOUNDARY}--\r\n".encode()
    kind = f"multipart/form-data; boundary={_BOUNDARY}"
    return board.ask("/api/v1/batches", "POST", body, content_type=kind)


OPTIONS = {"template": "{Colour} {Title}", "id_column": "SKU", "seeds": "2", "queue": "rest"}
OPTIONS |= {"defaults": '{"size": "64x64", "steps": 3, "seed": "random:7"}'}


def test_a_feed_is_checked_and_queued(quiet_board: RunningBoard) -> None:
    checked = send(quiet_board, "feed.csv", FEED, **OPTIONS, dry_run="true")
    assert checked.status == 200 and checked.json["rows"] == 4
    assert checked.json["preview"][0]["prompt"] == "rot Vase"
    assert any("UTF-16" in note for note in checked.json["notes"])
    queued = send(quiet_board, "feed.csv", FEED, **OPTIONS)
    assert queued.status == 201 and (queued.json["new"], queued.json["queue"]) == (4, "rest")
    ids = [job["custom_id"] for job in queued.json["jobs"]]
    assert ids == ["A-1", "A-1-s2", "A-2", "A-2-s2"]
    shown = quiet_board.ask(f"/api/v1/jobs/{queued.json['jobs'][3]['id']}").json
    assert shown["spec"]["steps"] == 3
    again = send(quiet_board, "feed.csv", FEED, **OPTIONS).json
    assert (again["new"], again["known"]) == (0, 4), "the same seeds are drawn again"


@pytest.mark.parametrize(
    ("name", "data", "fields", "problem"),
    [
        ("feed.csv", b"prompt,seed\na,x\nb,y\n", {}, "lines 2, 3: seed: 'x'"),
        ("feed.ods", b"", {}, "has an unknown ending"),
        ("feed.xlsx", b"", {}, "is not a workbook"),
        ("feed.csv", b"prompt\na\n", {"defaults": "[1]"}, "is not names and values"),
        ("feed.csv", b"prompt\na\n", {"defaults": '{"init": "/etc/passwd"}'}, "cannot be set on the board"),
        ("feed.csv", b"prompt\na\n", {"defaults": '{"stpes": 3}'}, "did you mean steps"),
        ("feed.csv", b"prompt,init\na,/etc/passwd\n", {}, "is a file of another machine"),
        ("feed.csv", b"prompt,init\na,http://127.0.0.1/x\n", {}, "which is not allowed"),
        ("feed.csv", b"prompt,model\na,/etc\n", {}, "is new to this farm"),
        ("feed.csv", b"prompt\na\n", {"grid": "steps=1,x"}, "steps: 'x'"),
        ("feed.csv", b"prompt\na\n", {"not_before": "sometime"}, "not_before: 'sometime'"),
        ("feed.csv", b"prompt\na\n", {"size": "64x64"}, "size' is a field of the spec; give it in defaults"),
        ("feed.csv", b"prompt\na\n", {"quue": "night"}, "form: 'quue' is unknown"),
    ],
)
def test_a_bad_batch_queues_nothing(
    quiet_board: RunningBoard, name: str, data: bytes, fields: dict[str, Any], problem: str
) -> None:
    before = quiet_board.ask("/api/v1/batches").json
    refused = send(quiet_board, name, data, **fields)
    assert refused.status == 400 and problem in refused.json["error"]
    assert quiet_board.ask("/api/v1/batches").json == before


@pytest.mark.parametrize("body", [{}, {"batch": "beefbeefbeef"}, {"queue": "nowhere"}])
def test_an_unknown_batch_or_queue_is_refused(quiet_board: RunningBoard, body: dict[str, str]) -> None:
    assert quiet_board.ask("/api/v1/jobs/cancel", "POST", body).status == 400
    for name, value in body.items():
        assert quiet_board.ask(f"/api/v1/jobs?{name}={value}").status == 400


def test_a_window_gets_a_zone(quiet_board: RunningBoard) -> None:
    stored = quiet_board.ask("/api/v1/queues/zoned", "PUT", {"time_window": "mon-fri 22:00-07:00"}).json
    assert stored["time_window"].startswith("mon-fri 22:00-07:00 ")


def test_the_built_in_enlarger_is_stored_for_the_nodes(quiet_board: RunningBoard) -> None:
    """By a row and by the defaults: the same job, whose file any node finds in the store."""
    values = {"size": "128x128", "seed": 11, "enlarger": "builtin"}
    row = b"prompt,size,seed,enlarger\na vase,128x128,11,builtin\n"
    by_row = send(quiet_board, "feed.csv", row)
    assert by_row.status == 201, by_row.json
    job = by_row.json["jobs"][0]["id"]
    spec = quiet_board.ask(f"/api/v1/jobs/{job}").json["spec"]
    stored = quiet_board.log.parent / "chorale" / "images" / "inputs" / spec["enlarger"]["digest"]
    assert stored.read_bytes() == BUILTIN_FILE.read_bytes()
    by_default = send(quiet_board, "feed.csv", b"prompt\na vase\n", defaults=json.dumps(values))
    assert by_default.status == 201 and by_default.json["jobs"][0]["id"] == job
    refused = send(quiet_board, "feed.csv", b"prompt\na\n", defaults='{"enlarger": "/etc/passwd"}')
    assert refused.status == 400 and "cannot be set on the board" in refused.json["error"]


def test_the_built_in_enlarger_of_one_image_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with open_farm(read_settings({})) as farm:
        values = {"prompt": "a vase", "width": 128, "height": 128, "enlarger": "builtin"}
        Board(farm, Access()).submit(values, JobOptions(owner="anna"))
    stored = list((tmp_path / "chorale" / "images" / "inputs").iterdir())
    assert [file.read_bytes() for file in stored] == [BUILTIN_FILE.read_bytes()]
