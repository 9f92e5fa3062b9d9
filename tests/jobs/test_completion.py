"""A shell completes the names of the farm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from infra.database import Database
from jobs.cli.main import cli
from jobs.db.nodes import register
from jobs.db.queues import set_queue
from jobs.db.submission import BatchItem, JobOptions, Receipt, submit
from render.spec import Spec


@pytest.fixture
def queued(database: Database, monkeypatch: pytest.MonkeyPatch) -> Receipt:
    monkeypatch.setenv("CHORALE_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))
    with database.write() as connection:
        for name in ("night", "nicht", "day"):
            set_queue(connection, name, {"priority": 50})
        register(connection, "studio-1", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    items = [BatchItem(row=1, custom_id="1", spec=Spec(prompt="a red vase", width=64, height=64))]
    return submit(database, items, "feed.csv", JobOptions(owner="anna"))


def completed(words: Sequence[str], incomplete: str) -> list[str]:
    return [
        item.value for item in ShellComplete(cli, {}, "chorale", "X").get_completions([*words], incomplete)
    ]


def test_names_and_ids_are_completed(queued: Receipt) -> None:
    ((_, job),) = queued.jobs
    assert completed(["list", "--queue"], "ni") == ["nicht", "night"]
    assert "day" in completed(["submit", "a vase", "--queue"], "d")
    assert completed(["queues"], "nig") == ["night"]
    assert completed(["drain"], "") == ["studio-1"]
    assert completed(["report", "--batch"], "") == [queued.batch]
    assert completed(["show"], job[:3]) == [job] and completed(["cancel", job], job[:1]) == [job]
    assert completed(["webhook", "add", "https://a.example", "--queue"], "da") == ["day"]
    assert completed(["submit", "a vase", "--sampler"], "eul")[0] == "euler"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_farm_that_is_not_there_completes_nothing_and_is_not_made(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CHORALE_DATABASE_URL", raising=False)
    assert completed(["list", "--queue"], "") == []
    monkeypatch.setenv("CHORALE_DATABASE_URL", "nonsense")
    assert completed(["list", "--queue"], "") == []
    assert not (tmp_path / "home").exists()
