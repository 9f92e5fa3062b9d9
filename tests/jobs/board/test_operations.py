"""What an operator does on the board with several jobs at once, and with the rules of a queue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from sqlalchemy import select, update

from infra.database import Database
from infra.settings import Settings
from jobs.board.access import Access, read_access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.db.audit import list_acts
from jobs.db.queues import list_queues, set_queue
from jobs.db.schema import upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import entries, jobs
from jobs.farm import Farm
from render.spec import Spec
from tests.support.asgi import ask


@dataclass
class Operator:
    """Someone whose browser has loaded a page of the board."""

    app: Any
    database: Database
    ids: list[str]
    cookie: str = ""
    token: str = ""

    def get(self, path: str) -> Any:
        answer = ask(self.app, path, headers={"accept": "text/html", "cookie": self.cookie})
        found = re.search(rb'name="csrf_token" value="([\w-]+)"', answer.body)
        self.token = found[1].decode() if found else self.token
        self.cookie = answer.headers.get("set-cookie", "").partition(";")[0] or self.cookie
        return answer

    def post(self, path: str, **fields: str) -> Any:
        body = urlencode(fields | {"csrf_token": self.token}).encode()
        kind = "application/x-www-form-urlencoded"
        headers = {"cookie": self.cookie, "content-type": kind, "accept": "text/html"}
        return ask(self.app, path, "POST", body, headers)

    def select(self, *numbers: int, **fields: str) -> str:
        """Do something with jobs that are selected by their numbers; returns the notice."""
        chosen = {f"job-{self.ids[number]}": "on" for number in numbers}
        answer = self.post("/jobs/do", list="state=queued&q=&notice=x", **chosen, **fields)
        assert answer.status == 303, answer.body
        asked = parse_qs(urlsplit(answer.headers["location"]).query)
        assert asked["state"] == ["queued"]
        return asked["notice"][0]

    def values(self, column: str) -> list[Any]:
        with self.database.read() as connection:
            found = dict(connection.execute(select(jobs.c.id, jobs.c[column])).all())  # type: ignore[arg-type]
        return [found[job] for job in self.ids]


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    database = Database(f"sqlite:///{tmp_path / 'farm.db'}")
    upgrade(database)
    items = [
        BatchItem(row=n, custom_id=str(n), spec=Spec(prompt=f"vase {n}", seed=n, width=64, height=64))
        for n in range(3)
    ]
    ids = [job for _, job in submit(database, items, "feed.csv", JobOptions(owner="anna", queue="day")).jobs]
    with database.write() as connection:
        set_queue(connection, "night", {"priority": 60})
    settings = Settings(store_url=(tmp_path / "images").as_uri())
    app = make_app(Board(Farm(settings=settings, database=database, url=""), Access()))
    made = Operator(app, database, ids)
    assert made.get("/jobs").status == 200
    yield made
    database.close()


def test_selected_jobs_are_changed_at_once(operator: Operator) -> None:
    page = operator.get("/jobs?state=queued").body.decode()
    assert all(f'name="job-{job}" form="selection"' in page for job in operator.ids)
    assert operator.select(0, 1, action="pause") == "2 jobs are paused"
    assert operator.values("state") == ["paused", "paused", "queued"]
    assert operator.select(1, 2, action="resume").startswith("1 job is queued; 1 could not be changed")
    assert operator.select(0, 2, action="priority", priority="90") == "2 jobs are at priority 90"
    assert operator.values("priority") == [90, None, 90]
    with operator.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == operator.ids[2]).values(state="rendering"))
    moved = operator.select(0, 1, 2, action="move", queue="night")
    assert moved.startswith("2 jobs are in queue night; 1 could not be changed")
    assert operator.values("queue") == ["night", "night", "day"]
    assert operator.select(0, action="cancel") == "1 job is cancelled"
    assert operator.select(0, action="retry") == "1 job is queued"
    with operator.database.read() as connection:
        acts = [(act["action"], act["target"]) for act in list_acts(connection, 50)]
    assert acts[0] == ("retry", "1 selected job") and ("move", "3 selected jobs") in acts


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"action": "explode"}, "action: 'explode' is unknown"),
        ({"action": "priority", "priority": "101"}, "priority: '101' is not a whole number from 0 to 100"),
        ({"action": "priority"}, "priority: "),
        ({"action": "move", "queue": "nowhere"}, "queue: 'nowhere' is unknown"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(
    operator: Operator, fields: dict[str, str], part: str
) -> None:
    before = operator.values("changed"), operator.values("queue"), operator.values("priority")
    answer = operator.post("/jobs/do", **{f"job-{operator.ids[0]}": "on"}, **fields)
    assert answer.status == 400 and part in answer.body.decode().replace("&#39;", "'")
    assert (operator.values("changed"), operator.values("queue"), operator.values("priority")) == before
    assert operator.post("/jobs/do", action="cancel").status == 400, "nothing is selected"
    assert operator.post("/jobs/do", **{"job-zz": "on"}, action="cancel").status == 404


def test_the_rules_of_a_queue_are_edited(operator: Operator) -> None:
    def queue(name: str) -> dict[str, Any] | None:
        with operator.database.read() as connection:
            return next((each for each in list_queues(connection) if each["name"] == name), None)

    rules = {"priority": "70", "limit": "2", "window": "22:00-07:00 UTC", "shares": "anna=2\nben = 0.5"}
    assert operator.post("/queues", name="prints", **rules).status == 303
    made = queue("prints")
    assert made is not None
    assert (made["priority"], made["group_limit"], made["time_window"]) == (70, 2, "22:00-07:00 UTC")
    assert made["shares"] == {"anna": 2.0, "ben": 0.5}
    page = operator.get("/queues/prints").body.decode()
    assert all(f'value="{text}"' in page for text in ("70", "2", "22:00-07:00 UTC")) and "anna=2" in page
    wrong = operator.post("/queues/prints", **(rules | {"window": "late", "limit": "3"}))
    assert (
        wrong.status == 400 and 'value="late"' in wrong.body.decode() and 'value="3"' in wrong.body.decode()
    )
    assert operator.post("/queues/prints").status == 303, "empty fields are no rules"
    bare = queue("prints")
    assert bare is not None and (bare["priority"], bare["group_limit"], bare["time_window"]) == (
        50,
        None,
        None,
    )
    assert operator.post("/queues/prints", action="delete").status == 303 and queue("prints") is None
    assert operator.get("/queues/prints").status == 400
    assert operator.post("/queues/day", action="delete").status == 400, "it has unfinished jobs"
    assert "Delete" not in operator.get("/queues/day").body.decode()
    assert operator.get("/queues").status == 200 and operator.get("/submit?part=batch").status == 200


def test_rules_are_for_operators(tmp_path: Path, operator: Operator) -> None:
    from jobs.board.access import read_access

    tokens = tmp_path / "tokens"
    tokens.write_text("viewer=correct-horse-battery-viewer\noperator=correct-horse-battery-operator\n")
    farm = Farm(settings=Settings(), database=operator.database, url="")
    app = make_app(Board(farm, read_access(str(tokens))))
    viewer = {"authorization": "Bearer correct-horse-battery-viewer", "accept": "text/html"}
    assert ask(app, "/queues/day", headers=viewer).status == 403
    assert ask(app, "/queues", headers=viewer).status == 403
    refused = ask(app, "/submit", headers=viewer)
    assert refused.status == 403 and b"new images are for operators" in refused.body
    assert b'class="pick"' not in ask(app, "/jobs", headers=viewer).body


def test_jobs_and_batches_are_deleted_after_the_board_has_said_what_goes(operator: Operator) -> None:
    with operator.database.read() as connection:
        batch = connection.execute(select(entries.c.batch).limit(1)).scalar_one()
    chosen = {f"job-{operator.ids[number]}": "on" for number in (0, 1)}
    told = operator.post("/jobs/do", action="delete", **chosen)
    page = told.body.decode()
    assert told.status == 200 and "Delete 2 jobs?" in page and "Receipts and the audit log stay" in page
    assert len(operator.values("state")) == 3, "nothing has gone yet"
    posted = operator.post("/delete", jobs=",".join(operator.ids[:2]))
    assert "2+jobs+deleted" in posted.headers["location"]
    assert f"/batches/{batch}/delete" in operator.get(f"/batches/{batch}").body.decode()
    assert f"Delete batch {batch}?" in operator.get(f"/batches/{batch}/delete").body.decode()
    with operator.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == operator.ids[2]).values(state="rendering"))
    assert "Cancel 1 that runs, and delete" in operator.get(f"/jobs/{operator.ids[2]}/delete").body.decode()
    assert operator.post("/delete", batch=batch).status == 409
    with operator.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == operator.ids[2]).values(state="publishing"))
    page = operator.get(f"/jobs/{operator.ids[2]}/delete").body.decode()
    assert "is being published" in page and 'action="/delete"' not in page
    with operator.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == operator.ids[2]).values(state="queued"))
    assert operator.post("/delete", batch=batch).headers["location"].startswith("/jobs?notice=1+job+deleted")
    with operator.database.read() as connection:
        assert connection.execute(select(jobs.c.id)).all() == []
        acts = [(act["action"], act["target"]) for act in list_acts(connection, 2)]
    assert acts == [("delete", f"batch {batch}"), ("delete", "2 jobs")]


def test_rest_deletes_and_says_what_would_go(operator: Operator) -> None:
    app, job = operator.app, operator.ids[0]
    operator.get("/jobs")
    headers = {"cookie": operator.cookie}
    told = ask(app, f"/api/v1/jobs/{job}?dry_run=true", "DELETE", headers=headers).json
    assert (told["jobs"], told["deleted"], told["files"]) == (1, False, 0)
    assert ask(app, f"/api/v1/jobs/{job}", "DELETE", headers=headers).json["deleted"] is True
    assert ask(app, f"/api/v1/jobs/{job}", "DELETE", headers=headers).status == 404
    assert ask(app, "/api/v1/batches/none", "DELETE", headers=headers).status == 400
    with operator.database.read() as connection:
        batch = connection.execute(select(entries.c.batch).limit(1)).scalar_one()
    part = f"/api/v1/batches/{batch}?images=1"
    assert ask(app, part, "DELETE", headers=headers).json["jobs"] == 1
    assert ask(app, f"/api/v1/batches/{batch}", "DELETE", headers=headers).json["batch"] == batch


@pytest.mark.parametrize("role", ["viewer", "reviewer"])
def test_viewers_and_reviewers_delete_nothing(operator: Operator, tmp_path: Path, role: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"operator={'o' * 30}\n{role}={'v' * 30}\n")
    access = read_access(str(tokens), b"s" * 32)
    settings = Settings(store_url=(tmp_path / "images").as_uri())
    app = make_app(Board(Farm(settings=settings, database=operator.database, url=""), access))
    headers = {"authorization": f"Bearer {'v' * 30}", "accept": "text/html"}
    job = operator.ids[0]
    assert ask(app, f"/api/v1/jobs/{job}", "DELETE", headers=headers).status == 403
    assert ask(app, f"/jobs/{job}/delete", headers=headers).status == 403
    assert ask(app, "/delete", "POST", headers=headers).status == 403
    assert "/delete" not in ask(app, f"/jobs/{job}", headers=headers).body.decode()
