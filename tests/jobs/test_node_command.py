"""Comments and tags of nodes, and jobs that ask for tags, by every face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner

from infra.database import Database
from infra.settings import read_settings
from jobs.board.access import Access, new_token
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.cli.farm_options import this_user
from jobs.cli.main import cli
from jobs.db.audit import list_acts
from jobs.db.node_changes import MOST_COMMENT, change_node
from jobs.db.nodes import register
from jobs.farm import open_farm
from render.errors import BadInput
from tests.support.asgi import ask

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def farm(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORALE_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    node(database)


def node(database: Database, own: str = "gpu") -> None:
    with database.write() as connection:
        info = {"address": "127.0.0.1", "slots": 1, "device": "cpu", "vram_bytes": None}
        register(connection, "n1", own_tags=own, **info)


def run(*words: str) -> str:
    answer = CliRunner().invoke(cli, [*words], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_a_comment_and_tags_are_shown_and_audited(database: Database) -> None:
    assert run("node", "comment", "n1", "  fan is loud\n") == "Node n1: fan is loud\n"
    assert run("node", "tag", "n1", "A100,nvme", "rack=3") == "Node n1 has tags a100, gpu, nvme and rack=3\n"
    assert json.loads(run("node", "untag", "n1", "nvme", "--json"))["tags"] == ["a100", "gpu", "rack=3"]
    (shown,) = json.loads(run("nodes", "--json"))["nodes"]
    assert (shown["comment"], shown["tags"]) == ("fan is loud", ["a100", "gpu", "rack=3"])
    assert shown["own_tags"] == ["gpu"]
    assert "fan is loud" in run("nodes") and "a100 gpu rack=3" in run("nodes")
    node(database, own="")
    (shown,) = json.loads(run("nodes", "--json"))["nodes"]
    assert shown["tags"] == ["a100", "rack=3"], "the agent was started again without its tag"
    assert run("node", "comment", "n1", "") == "Node n1 has no comment\n"
    with database.read() as connection:
        acts = [(act["action"], act["target"], act["who"]) for act in list_acts(connection, 9)]
    assert acts[::-1] == [
        (action, "node n1", this_user()) for action in ("comment", "tag", "untag", "comment")
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"add_tags": ["no way!"]}, "tag: 'way!' is not a tag; use up to 40 letters"),
        ({"add_tags": [f"t{n}" for n in range(11)]}, "tag: 11 tags are too many; use at most 10"),
        ({"remove_tags": ["nvme"]}, "tag: 'nvme' is no tag of node n1; chorale nodes shows"),
        ({"remove_tags": ["gpu"]}, "tag: 'gpu' comes from the settings of node n1; start its agent without"),
        ({"comment": "x" * (MOST_COMMENT + 1)}, "has 501 characters; use at most 500"),
        ({"comment": "a\x1b[2Jb"}, "has characters that do not print"),
        ({}, "node: 'n1' would stay as it is"),
    ],
)
def test_a_mistake_changes_nothing(database: Database, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as refused, database.write() as connection:
        change_node(connection, "n1", "me", **changes)
    assert sentence in str(refused.value)
    with pytest.raises(BadInput, match="node: 'n2' is unknown"), database.write() as connection:
        change_node(connection, "n2", "me", comment="x")
    (shown,) = json.loads(run("nodes", "--json"))["nodes"]
    assert (shown["comment"], shown["tags"]) == ("", ["gpu"])


def test_a_job_asks_for_tags_by_flag_and_by_column(tmp_path: Path) -> None:
    batch = tmp_path / "feed.csv"
    batch.write_text('custom_id,prompt,Require tag\na,a red vase,"A100, nvme"\nb,a blue vase,\n')
    words = ("--size", "64x64", "--require-tag", "gpu", "--json")
    made = json.loads(run("submit", str(batch), *words))
    shown = [json.loads(run("show", each["id"], "--json")) for each in made["jobs"]]
    assert [each["require_tag"] for each in shown] == [["a100", "nvme"], ["gpu"]]
    sentence = "cannot run: needs tags a100 and nvme, no node has both"
    assert [each["cannot_run"] for each in shown] == [sentence, None]
    assert sentence in run("list") and sentence in run("estimate")
    assert "needs     tags a100 and nvme" in run("show", made["jobs"][0]["id"])
    lines = tmp_path / "feed.jsonl"
    lines.write_text(
        '{"prompt": "a", "require_tag": ["x", "y"]}\n{"prompt": "b", "require_tag": "no way!"}\n'
    )
    refused = CliRunner().invoke(cli, ["submit", str(lines), "--size", "64x64"])
    assert isinstance(refused.exception, BadInput), "bad rows are refused as a whole"
    assert "require_tag: 'way!' is not a tag" in refused.output


def test_the_same_image_with_other_tags_is_the_same_job() -> None:
    words = ("submit", "a vase", "--size", "64x64", "--json", "--require-tag")
    one, two = (json.loads(run(*words, tag)) for tag in ("gpu", "a100"))
    assert one["jobs"][0]["id"] == two["jobs"][0]["id"] and two["known"] == 1
    # One that was cancelled is queued again as it is asked for now.
    run("cancel", one["jobs"][0]["id"])
    run(*words, "a100")
    assert json.loads(run("show", one["jobs"][0]["id"], "--json"))["require_tag"] == ["a100"]


def test_the_board_shows_and_changes_them() -> None:
    secret, operator = new_token("operator", "anna")
    looker, viewer = new_token("viewer", "ben")
    with open_farm(read_settings({})) as farm:
        app = make_app(Board(farm, Access((operator, viewer))))

        def rest(path: str, method: str = "GET", given: str = secret, **body: Any) -> Any:
            headers = {"authorization": f"Bearer {given}", "content-type": "application/json"}
            return ask(app, path, method, json.dumps(body).encode() if body else b"", headers)

        changed = rest("/api/v1/nodes/n1", "PUT", comment="a <b>fan</b>", add_tags=["NVMe"])
        assert changed.json == {"node": "n1", "comment": "a <b>fan</b>", "tags": ["gpu", "nvme"]}
        assert rest("/api/v1/nodes/n1", "PUT", looker, comment="x").status == 403
        assert "would stay as it is" in rest("/api/v1/nodes/n1", "PUT", add_tags=[]).json["error"]
        refused = rest("/api/v1/nodes/n1", "PUT", remove_tags=["gpu"])
        assert refused.status == 400 and "comes from the settings" in refused.json["error"]
        page = rest("/nodes", given=looker).body.decode()
        assert "a &lt;b&gt;fan&lt;/b&gt;" in page and "<li>nvme</li>" in page and "/nodes/n1/do" not in page

        form = {"content-type": "application/x-www-form-urlencoded"}
        logged_in = ask(app, "/login", "POST", f"token={secret}".encode(), form)
        cookie = {"cookie": logged_in.headers["set-cookie"].partition(";")[0]}
        page = ask(app, "/nodes", headers=cookie).body.decode()
        assert 'name="tags" value="nvme"' in page, "those of the agent are not for the form to change"
        csrf = page.partition('name="csrf_token" value="')[2].partition('"')[0]

        def send(path: str, **fields: str) -> Any:
            return ask(app, path, "POST", urlencode(fields | {"csrf_token": csrf}).encode(), form | cookie)

        assert send("/nodes/n1/do", comment="new fan", tags="a100, rack=3").status == 303
        (shown,) = rest("/api/v1/nodes").json["nodes"]
        assert (shown["comment"], shown["tags"]) == ("new fan", ["a100", "gpu", "rack=3"])
        assert send("/nodes/n1/do", comment="new fan", tags="rack=3,a100").status == 303
        assert send("/nodes/n2/do", comment="x", tags="").status == 400

        made = send("/submit", prompt="a vase", size="64x64", require_tag="a100 tpu")
        assert made.status == 303, made.body
        job = made.headers["location"]
        sentence = "cannot run: needs tags a100 and tpu, no node has both"
        shown = rest(f"/api/v1{job}").json
        assert (shown["require_tag"], shown["cannot_run"]) == (["a100", "tpu"], sentence)
        assert f'<small class="bad why" title="{sentence}">' in rest("/jobs").body.decode()
        page = rest(job).body.decode()
        assert f"This job {sentence}." in page and "Only on nodes with the tags a100, tpu." in page
        assert (
            'name="require_tag" value="a100, tpu"'
            in ask(app, f"/submit?job={job.rpartition('/')[2]}", headers=cookie).body.decode()
        )
        image = {"prompt": "a mug", "size": "64x64", "require_tag": ["gpu"]}
        again = rest("/api/v1/jobs", "POST", **image).json["job"]
        assert rest(f"/api/v1/jobs/{again}").json["require_tag"] == ["gpu"]
        wrong = rest("/api/v1/jobs", "POST", **image | {"require_tag": ["no way!"]})
        assert wrong.status == 400 and "is not a tag" in wrong.json["error"]
