"""The list of jobs: names, nodes, how long, and why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import update

from infra.database import Database
from jobs.cli.job_columns import COLUMNS, table_of
from jobs.cli.jobs import print_jobs
from jobs.cli.main import cli
from jobs.db.nodes import register
from jobs.db.queries import Filter, list_jobs, with_names
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs
from render.errors import BadInput
from render.spec import Spec
from tests.jobs.db.test_report import end_all


@pytest.fixture
def rendered(database: Database) -> str:
    """A batch of three images, one done and one failed; one of them is in a later batch too."""
    with database.write() as connection:
        register(connection, "studio-1", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    items = [
        BatchItem(row=n, custom_id=f"SKU-{n}", spec=Spec(prompt=f"vase {n}", width=64, height=64))
        for n in range(3)
    ]
    batch = submit(database, items, "feed.csv", JobOptions(owner="anna", ranks=1)).batch
    end_all(database, 100)
    (failed,) = end_all(database, 50, "NaN")
    with database.write() as connection:
        again = {"state": "failed", "reason": "gave up: NaN"}
        connection.execute(update(jobs).where(jobs.c.id == failed).values(**again))
    single = [BatchItem(row=1, custom_id="image", spec=items[2].spec)]
    submit(database, single, "vase 2", JobOptions(owner="anna"))
    return batch


def test_jobs_have_their_names_and_nodes(database: Database, rendered: str) -> None:
    with database.read() as connection:
        found = with_names(connection, list_jobs(connection, Filter(), 50), rendered)
        newest = with_names(connection, list_jobs(connection, Filter(), 50))
    assert {row["custom_id"] for row in found} == {"SKU-0", "SKU-1", "SKU-2"}
    assert sorted(row["state"] for row in found) == ["done", "failed", "queued"]
    assert {tuple(row["nodes"]) for row in found if row["state"] != "queued"} == {("studio-1",)}
    assert "image" in {row["custom_id"] for row in newest}


def test_the_table_leaves_out_what_no_job_has(
    database: Database, rendered: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.read() as connection:
        found = with_names(connection, list_jobs(connection, Filter(batch=rendered), 50), rendered)
    rows = [row | {"cannot_run": None, "waits_for": None} for row in found]
    print_jobs(rows, None, False)
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("SKU-1", "studio-1", "gave up: NaN", "took", "anna"))
    print_jobs([row for row in rows if row["state"] == "queued"], None, False)
    shown = capsys.readouterr().out
    assert "reason" not in shown and "took" not in shown and "SKU-" in shown
    print_jobs(rows, None, True)
    (line,) = capsys.readouterr().out.splitlines()
    assert {row["custom_id"] for row in json.loads(line)["jobs"]} == {"SKU-0", "SKU-1", "SKU-2"}


def test_columns_are_chosen_and_jobs_sorted(
    database: Database, rendered: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHORALE_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def run(*words: str) -> str:
        answer = CliRunner().invoke(cli, ["list", "--batch", rendered, *words], catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        return answer.output

    lines = run("--columns", "custom-id, state,TOOK", "--sort", "-took").splitlines()
    head = next(number for number, line in enumerate(lines) if "took" in line)
    assert lines[head].split() == ["custom", "id", "state", "took"]
    assert [line.split()[1] for line in lines[head + 1 :]] == ["done", "failed", "queued"], (
        "100 s, 50 s, none"
    )
    first = [row["state"] for row in json.loads(run("--sort", "state", "--json"))["jobs"]]
    assert first == ["done", "failed", "queued"]
    assert json.loads(run("--json", "--sort", "-state", "--limit", "1"))["jobs"][0]["state"] == "queued"
    for words, sentence in (
        (("--columns", "id,size"), "columns: 'size' is no column; use some of id,custom_id,state"),
        (("--sort", "prompt"), "sort: 'prompt' is nothing to sort by; use one of created, started"),
    ):
        with pytest.raises(BadInput) as refused:
            run(*words)
        assert sentence in str(refused.value)


def test_states_have_colors_and_prompts_none() -> None:
    row = dict.fromkeys(COLUMNS) | {"state": "failed", "cannot_run": None, "waits_for": None}
    row |= {"prompt": "[red]a vase[/red]", "created": 1.0, "progress": 0.5, "reason": "NaN"}
    _, ((state, prompt),) = table_of([row], ("state", "prompt"))
    assert (state.plain, [str(span.style) for span in state.spans]) == ("failed", ["red"])
    assert prompt == "[red]a vase[/red]", "the table shows it as it is"
    _, ((state,),) = table_of([row | {"state": "queued", "cannot_run": "cannot run: x"}], ("state",))
    assert (state.plain, [str(span.style) for span in state.spans]) == ("cannot run: x", ["red"])
