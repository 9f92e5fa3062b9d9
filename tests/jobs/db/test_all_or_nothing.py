"""A batch is queued as a whole or not at all, and a dry run says the same, on both databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select

from infra.database import Database
from infra.errors import DatabaseUnreachable
from jobs.cli.main import cli
from jobs.db import submission
from jobs.db.queues import set_queue
from jobs.db.submission import BatchItem, JobOptions, Preparation, submit
from jobs.db.tables import batches, entries, jobs
from render.errors import BadInput
from render.spec import Spec


def rows_of(database: Database) -> tuple[int, ...]:
    with database.read() as connection:
        return tuple(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (batches, jobs, entries)
        )


def chorale(database: Database, *arguments: str) -> tuple[int, str]:
    url = database.engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    result = CliRunner().invoke(cli, [*arguments, "--database-url", url])
    if result.exception and not isinstance(result.exception, SystemExit | BadInput):
        raise result.exception
    return (2 if isinstance(result.exception, BadInput) else result.exit_code), str(result.exception)


BAD_ROWS: dict[str, dict[str, Any]] = {
    "tile set without a layout": {"tile_set": ["a: x,y"], "size": "64x64"},
    "wrap with a size that cannot wrap": {"wrap": "xy", "tile_set": ["a: b,b", "b: b,b"]},
    "long id": {"custom_id": "x" * 257},
    "id with NUL": {"custom_id": "a\0b"},
    "id with half a surrogate": {"custom_id": "a\ud800"},
    "id with an escape sequence": {"custom_id": "a\x1b[31m"},
    "prompt with half a surrogate": {"prompt": "a vase \ud800"},
    "prompt with NUL": {"prompt": "a \0 vase"},
    "id of a variation": {"custom_id": "a-v2"},
    "unknown model": {"model": "/nowhere"},
    "long model": {"model": "/" + "x" * 600},
    "number of many digits": {"seed": 10**400},
    "nested prompt": {"prompt": [[[["a"]]]]},
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_one_bad_row_queues_nothing(database: Database, tmp_path: Path, name: str) -> None:
    rows = [{"custom_id": f"row {n}", "prompt": f"vase {n}"} for n in range(420)]
    rows.append({"custom_id": "a", "prompt": "vase"})
    rows.append({"custom_id": "b", "prompt": "mug"} | BAD_ROWS[name])
    path = tmp_path / "b.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["submit", str(path), "--size", "64x64"]
    if "size" in BAD_ROWS[name]:
        arguments = arguments[:2]
    arguments += ["--variations", "2"] if name == "id of a variation" else []
    dry = chorale(database, *arguments, "--dry-run")
    assert dry[0] == 2 and "1 bad row" in dry[1]
    assert chorale(database, *arguments) == dry
    assert rows_of(database) == (0, 0, 0)


@pytest.mark.parametrize(
    "options",
    [
        ["--queue", "q" * 65],
        ["--owner", "o" * 129],
        ["--queue", " "],
        ["--owner", "a\x07b"],
        ["--not-before", "2026-11-22T07:00", "--deadline", "2026-11-21T07:00"],
    ],
)
def test_a_name_that_one_database_cuts_is_refused_by_both(database: Database, options: list[str]) -> None:
    for dry in (["--dry-run"], []):
        assert chorale(database, "submit", "a vase", "--size", "64x64", *options, *dry)[0] == 2
    assert rows_of(database) == (0, 0, 0)


def test_a_queue_has_a_name_that_every_database_holds(database: Database) -> None:
    for name in ("q" * 65, "", "a\nb"):
        with database.write() as connection, pytest.raises(BadInput, match="queue"):
            set_queue(connection, name, {"paused": True})


def test_a_file_of_any_name_is_a_batch(database: Database, tmp_path: Path) -> None:
    path = tmp_path / ("b" * 120 + " \u202e\n.csv")
    path.write_text("prompt\na vase\n")
    assert chorale(database, "submit", str(path), "--size", "64x64")[0] == 0
    with database.read() as connection:
        name = connection.execute(select(batches.c.name)).scalar_one()
    assert name.isprintable() and name.startswith("bbb")


def test_an_item_that_is_refused_leaves_no_trace() -> None:
    good = BatchItem(row=1, custom_id="a", spec=Spec(prompt="x", width=64, height=64))
    with Preparation(JobOptions(owner="me")) as prepared:
        prepared.add(good)
        for bad in (good, BatchItem(row=2, custom_id="", spec=good.spec)):
            with pytest.raises(BadInput, match="custom_id"):
                prepared.add(bad)
        prepared.add(BatchItem(row=2, custom_id="b", spec=good.spec))
        assert [each["custom_id"] for chunk in prepared.chunks() for each in chunk] == ["a", "b"]
        assert (prepared.count, prepared.twins) == (2, [("b", "a")])


def test_a_database_that_goes_away_is_told_with_what_is_queued(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [
        BatchItem(row=n, custom_id=str(n), spec=Spec(prompt="x", width=64, height=64, seed=n))
        for n in range(1500)
    ]
    whole, calls = submission._submit_chunk, []

    def failing(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise DatabaseUnreachable("the database does not answer")
        whole(*arguments)

    monkeypatch.setattr(submission, "_submit_chunk", failing)
    with pytest.raises(DatabaseUnreachable, match=r"1,000 of 1,500 images are queued .* add the rest"):
        submit(database, items, "b", JobOptions(owner="me"))
    receipt = submit(database, items, "b", JobOptions(owner="me"))
    assert (receipt.new, receipt.known) == (500, 1000)
    assert [custom_id for custom_id, _ in receipt.jobs] == [str(n) for n in range(1500)]
