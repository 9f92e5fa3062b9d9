"""gc and the results of a batch: what they touch, and what they never do."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infra.database import Database
from infra.store.parts import part_of
from jobs.cli.main import cli
from jobs.db.state_machine import change_state
from tests.support.buckets import Bucket, credentials


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "chorale"


def chorale(*arguments: str) -> Any:
    result = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    return json.loads(result.stdout.splitlines()[-1])


def submitted(prompt: str) -> dict[str, Any]:
    batch = chorale("submit", prompt, "--size", "128x128")["batch"]
    job = chorale("list", "--batch", batch)["jobs"][0]["id"]
    return {"batch": batch} | chorale("show", job)


def unfinished(home: Path, digest: str, days: float, *, manifest: bool = False) -> Path:
    work = home / "images" / digest / "work"
    work.mkdir(parents=True)
    (work / "checkpoint.safetensors").write_bytes(b"x" * 1000)
    if manifest:
        (work.parent / "manifest.json").write_text("{}")
    moment = work.stat().st_mtime - days * 86_400
    os.utime(work / "checkpoint.safetensors", (moment, moment))
    return work


def test_gc_deletes_only_what_no_job_needs_and_only_with_yes(home: Path) -> None:
    living, cancelled = submitted("a living one"), submitted("a cancelled one")
    chorale("cancel", cancelled["id"])
    kept = unfinished(home, living["digest"], 30)
    ended = unfinished(home, cancelled["digest"], 30)
    finished = unfinished(home, "f" * 64, 30, manifest=True)
    fresh = unfinished(home, "e" * 64, 1)
    found = chorale("gc")
    assert sorted(found["paths"]) == sorted([str(ended), str(finished)]) and found["bytes"] == 2000
    assert ended.exists()
    assert chorale("gc", "--yes")["removed"] is True
    assert [path.exists() for path in (kept, ended, finished, fresh)] == [True, False, False, True]
    assert (finished.parent / "manifest.json").exists()


def test_gc_deletes_unfinished_folders_of_other_numerics_once_their_job_has_ended(home: Path) -> None:
    running, ended = submitted("a running one"), submitted("an ended one")
    chorale("cancel", ended["id"])
    needed = unfinished(home, f"{running['digest']}-0123456789ab", 30)
    finished = unfinished(home, f"{ended['digest']}-0123456789ab", 30, manifest=True)
    abandoned = unfinished(home, f"{ended['digest']}-ba9876543210", 30)
    tile = abandoned.parent / "image_files" / "0" / "0_0.png"
    tile.parent.mkdir(parents=True)
    tile.write_bytes(b"x")
    os.utime(tile, (0, 0))
    listed = chorale("gc", "--yes")
    assert sorted(listed["paths"]) == sorted([str(finished), str(abandoned.parent)])
    assert [path.exists() for path in (needed, finished, tile)] == [True, False, False]
    assert (finished.parent / "manifest.json").exists()


def test_gc_deletes_parts_of_files_whose_writer_was_killed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORALE_STORE_URL", str(tmp_path / "store"))
    digest = submitted("a living one")["digest"]
    places = [tmp_path / "store" / digest / "image_files" / "3", home / "inputs", home / "models" / "x"]
    parts = []
    for place in places:
        place.mkdir(parents=True)
        parts.append(part_of(place / "0_0.png"))
        parts[-1].write_bytes(b"x" * 10)
        os.utime(parts[-1], (0, 0))
    new = part_of(places[0] / "0_0.png")
    new.write_bytes(b"x")
    listed = chorale("gc", "--older-than", "0")
    assert sorted(listed["paths"]) == sorted(map(str, parts)) and listed["bytes"] == 30
    assert all(part.exists() for part in parts)
    chorale("gc", "--older-than", "0", "--yes")
    assert not any(part.exists() for part in parts) and new.exists(), "somebody may be writing it now"
    assert chorale("gc", "--older-than", "0")["paths"] == []


def test_gc_looks_into_a_bucket_too(moto: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    url = moto.fresh_url()
    monkeypatch.setenv("CHORALE_STORE_URL", url)
    with credentials(moto):
        for name, value in moto.environment.items():
            monkeypatch.setenv(name, value)
        living = submitted("a living one")["digest"]
        store = moto.store(url)
        store.within(living).put("work/block-0-0", b"x", "text/plain")
        store.put("f/manifest.json", b"x", "application/json")
        store.put("f/image_files/0/0_0.png", b"x", "image/png")
        kept = [entry.key for entry in store.entries()]
        store.within("f").put("work/block-0-0", b"x", "text/plain")
        store.within("e").put("work/checkpoint", b"x", "text/plain")
        store.put("logs/1234-0001-n1.log", b"x", "text/plain")
        found = chorale("gc", "--older-than", "0", "--yes")
        assert found["paths"] == [f"{url}/e/work", f"{url}/f/work", f"{url}/logs/1234-0001-n1.log"]
        assert [entry.key for entry in store.entries()] == kept


def test_the_results_of_a_batch_name_every_row_once(home: Path) -> None:
    catalog = Path("catalog.jsonl")
    rows = [{"custom_id": name, "prompt": f"a {name} vase"} for name in ("red", "blue", "white")]
    catalog.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = chorale("submit", str(catalog), "--size", "128x128")["batch"]
    jobs = {job["prompt"]: job["id"] for job in chorale("list")["jobs"]}
    database = Database(f"sqlite:///{home / 'farm.db'}")
    with database.write() as connection:
        for old, new in (("queued", "placing"), ("placing", "rendering"), ("rendering", "publishing")):
            change_state(connection, jobs["a red vase"], old, new, "")
        change_state(connection, jobs["a red vase"], "publishing", "done", "", root="abc")
    database.close()
    chorale("cancel", jobs["a blue vase"])
    assert chorale("batches", batch, "--results", "night") == {
        "batch": batch,
        "results": "night",
        "output": 1,
        "errors": 2,
    }
    (done,) = [json.loads(line) for line in Path("night/output.jsonl").read_text().splitlines()]
    assert (done["custom_id"], done["root"]) == ("red", "abc")
    errors = [json.loads(line) for line in Path("night/errors.jsonl").read_text().splitlines()]
    assert {row["custom_id"]: row["state"] for row in errors} == {"blue": "cancelled", "white": "queued"}
