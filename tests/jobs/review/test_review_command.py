"""`chorale review`: verdicts, the quality gate, thumbnails and re-rolls, on a batch with finished images."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import select, update

from infra.database import Database
from jobs.cli.main import main
from jobs.db.reviews import review_rows
from jobs.db.tables import batches, entries, image_checks, jobs
from jobs.review.thumbnails import SIDE, THUMBNAIL
from render.spec import Spec
from tests.support.finished_batch import finish, finished_batch

IDS = ("A-1", "A-1-s2", "B,2", "C")


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return finished_batch(tmp_path, monkeypatch, IDS, done=3)


@pytest.fixture
def database(tmp_path: Path, batch: str) -> Database:
    return Database(f"sqlite:///{tmp_path / 'farm.db'}")


def run(capsys: pytest.CaptureFixture[str], *words: str, expected: int = 0) -> Any:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    out, err = capsys.readouterr()
    assert int(ended.value.code or 0) == expected, err
    return json.loads(out.strip().splitlines()[-1]) if expected == 0 else err + out


def verdicts(answer: dict[str, Any]) -> dict[str, str]:
    return {image["custom_id"]: image["verdict"] for image in answer["images"]}


def test_images_are_rejected_kept_and_exported(
    batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = run(
        capsys,
        "review",
        batch,
        "--reject",
        "A-1-s2",
        "--reason",
        "blue",
        "--keep",
        "unreviewed",
        "--as",
        "anna",
    )
    assert answer["changed"] == {"reject": ["A-1-s2"], "keep": ["A-1", "B,2"]}
    assert (answer["counts"]["kept"], answer["counts"]["rejected"], answer["counts"]["unreviewed"]) == (
        2,
        1,
        0,
    )
    listed = run(capsys, "review", batch)
    assert verdicts(listed) == {"A-1": "kept", "A-1-s2": "rejected", "B,2": "kept", "C": "unreviewed"}
    (rejected,) = run(capsys, "review", batch, "--verdict", "rejected")["images"]
    assert (rejected["votes"][0]["reviewer"], rejected["votes"][0]["reason"]) == ("anna", "blue")
    target = str(tmp_path / "{custom_id}.webp")
    exported = run(capsys, "export", "--batch", batch, target)
    assert [file["custom_id"] for file in exported["files"]] == ["A-1", "B,2"]
    assert (exported["not_kept"], exported["missing"]) == (1, 1)
    assert len(run(capsys, "export", "--batch", batch, target, "--all", "--force")["files"]) == 3


def test_positional_images_and_sets_mean_the_same(batch: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "review", batch, "--keep", "A-1", "B,2")
    run(capsys, "review", batch, "A-1", "--note", "for the front page")
    answer = run(capsys, "review", batch, "--star", "kept", "--as", "ben")
    assert answer["changed"] == {"star": ["A-1", "B,2"]} and answer["counts"]["starred"] == 2
    run(capsys, "review", batch, "--clear", "B,2")
    assert verdicts(run(capsys, "review", batch))["B,2"] == "unreviewed"
    with pytest.raises(SystemExit):
        main(["review", batch])
    shown = capsys.readouterr().out
    assert "for the front page" in shown and "2 unreviewed" in shown


def test_what_cannot_be_meant_changes_nothing(batch: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, problem in (
        (("--keep", "nosuch"), "is no image of this batch"),
        (("--keep", "C"), "is queued; review it when it is done"),
        (("--keep", "A-1", "--reject", "A-1"), "is also named by"),
        (("A-1",), "Say what to do"),
        (("--reason", "blue"), "--reason needs"),
        (("--prompt", "x"), "need --reroll"),
        (("--reroll", "A-1", "--keep-seed"), "changes nothing without another prompt"),
        (("--reroll", "C"), "is queued; wait for it"),
    ):
        assert problem in run(capsys, "review", batch, *words, expected=2)
    assert set(verdicts(run(capsys, "review", batch)).values()) == {"unreviewed"}
    assert "is unknown" in run(capsys, "review", "nosuch", "--keep", "A-1", expected=2)


def test_rejected_images_are_rendered_again_under_their_ids(
    batch: str, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.write() as connection:
        connection.execute(update(batches).values(reported=1.0))
        connection.execute(update(jobs).values(queue="night", priority=70))
    run(capsys, "review", batch, "--reject", "A-1,A-1-s2")
    answer = run(capsys, "review", batch, "--reroll")
    assert [each["custom_id"] for each in answer["changed"]["reroll"]] == ["A-1", "A-1-s2"]
    assert len({each["seed"] for each in answer["changed"]["reroll"]}) == 2
    with database.read() as connection:
        rows = {row["custom_id"]: row for row in review_rows(connection, batch)}
        new = connection.execute(select(jobs).where(jobs.c.id == rows["A-1"]["id"])).one()
        assert connection.execute(select(batches.c.reported)).scalar_one() is None
    assert (new.state, new.queue, new.priority, new.owner) == ("queued", "night", 70, "me")
    assert new.spec["prompt"] == "a vase" and new.spec["seed"] == answer["changed"]["reroll"][0]["seed"]
    assert rows["A-1"]["verdict"] == "unreviewed" and rows["A-1"]["votes"] == []
    # Nothing is rejected any more, so a second request does nothing.
    assert run(capsys, "review", batch, "--reroll")["changed"] == {"reroll": []}
    finish(database, tmp_path / "images", Spec.from_mapping(new.spec))
    run(capsys, "review", batch, "--keep", "A-1")
    assert verdicts(run(capsys, "review", batch))["A-1"] == "kept"
    database.close()


def test_a_reroll_changes_the_prompt(
    batch: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--reroll", "A-1", "--prompt", "{prompt}, from above", "--keep-seed")
    (changed,) = run(capsys, "review", batch, *words)["changed"]["reroll"]
    with database.read() as connection:
        spec = connection.execute(select(jobs.c.spec).where(jobs.c.id == changed["job"])).scalar_one()
        count = connection.execute(select(entries.c.job).where(entries.c.batch == batch)).all()
    assert (spec["prompt"], spec["seed"]) == ("a vase, from above", 1)
    assert len(count) == len(IDS)
    database.close()


def test_the_gate_flags_images_and_thumbnails_are_made_once(
    batch: str, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.read() as connection:
        columns = select(entries.c.custom_id, jobs.c.digest).join(jobs, jobs.c.id == entries.c.job)
        digests = {row.custom_id: row.digest for row in connection.execute(columns)}
    folder = tmp_path / "images" / digests["A-1"]
    manifest = json.loads((folder / "manifest.json").read_text())
    dark = manifest | {"range": [0, 12], "seams": manifest["seams"] | {"offset": 4.0}}
    (folder / "manifest.json").write_text(json.dumps(dark))
    even = io.BytesIO()
    Image.new("RGB", (128, 96), (90, 90, 90)).save(even, "WEBP")
    (folder / "preview.webp").write_bytes(even.getvalue())
    (tmp_path / "images" / digests["B,2"] / "manifest.json").unlink()
    flagged = run(capsys, "review", batch, "--verdict", "flagged")["images"]
    found = {image["custom_id"]: {flaw["check"] for flaw in image["flaws"]} for image in flagged}
    assert found == {"A-1": {"black", "flat", "seam"}, "B,2": {"files"}} | (
        {"A-1-s2": found["A-1-s2"]} if "A-1-s2" in found else {}
    )
    thumbnail = folder / THUMBNAIL
    with Image.open(thumbnail) as image:
        assert (image.format, image.size) == ("WEBP", (128, 96)) and max(image.size) <= SIDE
    made = thumbnail.stat().st_mtime_ns
    with database.write() as connection:
        connection.execute(image_checks.delete())
    run(capsys, "review", batch, "--reject", "flagged")
    assert thumbnail.stat().st_mtime_ns == made
    assert {row["custom_id"] for row in run(capsys, "review", batch, "--verdict", "rejected")["images"]} >= {
        "A-1",
        "B,2",
    }
    database.close()
