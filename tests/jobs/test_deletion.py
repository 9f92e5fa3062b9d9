"""Deleting jobs, batches and images with their files: what goes, what stays, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from infra.database import Database
from infra.errors import StoreRetryable
from infra.settings import read_settings
from infra.store.local import LocalStore
from jobs.db.audit import list_acts
from jobs.db.deletion import Selection, find, remove
from jobs.db.dependencies import Predecessor
from jobs.db.nodes import register
from jobs.db.outcomes import fail
from jobs.db.queries import Filter, count_jobs
from jobs.db.reviews import Named, Review, record_review
from jobs.db.state_machine import change_state
from jobs.db.tables import (
    attempts,
    batches,
    deleted_jobs,
    entries,
    events,
    follow_ups,
    jobs,
    members,
    renditions,
    reviews,
)
from jobs.deletion import count_files, request
from jobs.errors import IllegalChange
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up
from jobs.report import Scope, make_report
from jobs.scheduler.dispatcher import dispatch
from jobs.scheduler.pending_reason import pending_reason
from render.errors import BadInput
from tests.support.studio import Studio, run, studio_of_commands


@pytest.fixture
def studio(database: Database, tmp_path: Path) -> Studio:
    with database.write() as connection:
        register(connection, "n", address="127.0.0.1", slots=2, device="cpu", vram_bytes=None)
    settings = read_settings({"store_url": str(tmp_path / "images")})
    return Studio(Farm(settings=settings, database=database, url=""), tmp_path / "images")


def receipts(studio: Studio) -> tuple[dict[str, Any], dict[str, float]]:
    """Totals and lines of owners, and the slot seconds by batch."""
    with studio.database.read() as connection:
        report = make_report(connection, Scope())
    names = ("owners", "megapixels", "model_seconds", "slot_seconds", "lost_slot_seconds", "retries")
    lines = {name: line["slot_seconds"] for name, line in report["batches"].items()}
    return {name: report[name] for name in names}, lines


def test_a_batch_goes_with_its_files_and_its_receipts_stay(studio: Studio) -> None:
    batch, ids = studio.render("a vase", "a mug")
    other, (shared, _) = studio.render("a mug", "a bowl")
    assert shared == ids[1]
    before, lines = receipts(studio)
    assert before["slot_seconds"] > 150 and len(lines) == 2
    with studio.database.read() as connection:
        found = find(connection, Selection(batch=batch))
    assert (found.jobs, found.done, found.elsewhere, found.running) == ((ids[0],), 1, 1, ())
    amount = count_files(studio.farm, found)
    assert (amount.files, amount.bytes) == (4, 1000 + 10 + 2 * 100)
    kept = studio.files()
    id = studio.delete(batch=batch)
    assert studio.files() == kept, "the files follow"
    assert do_follow_up(studio.farm, id).text == "deleted the files of 1 job"
    gone = kept - studio.files()
    assert len(gone) == 4 and all(
        ids[0] in key or batch in key or key.endswith("manifest.json") for key in gone
    )
    assert f"renditions/{other}/ebay/1.jpg" in studio.files()
    assert receipts(studio)[0] == before
    with studio.database.read() as connection:
        assert list_acts(connection, 1)[0]["action"] == "delete"
        assert list_acts(connection, 1)[0]["target"] == f"batch {batch}"
        assert count_jobs(connection, Filter())["done"] == 2
        with pytest.raises(BadInput, match="is unknown"):
            find(connection, Selection(batch=batch))
    assert studio.count(batches, entries, renditions) == [1, 2, 2]
    left = studio.delete(batch=other)
    do_follow_up(studio.farm, left)
    assert studio.files() == set()
    assert studio.count(jobs, entries, events, attempts, members, renditions, batches) == [0] * 7
    after, lines_after = receipts(studio)
    # A job of two batches counts for the one that it was in to the end.
    assert after == before and lines_after.keys() == lines.keys()
    assert studio.count(deleted_jobs) == [3]


def test_the_same_image_waits_until_the_old_files_are_gone(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (job,) = studio.render("a vase")
    id = studio.delete(jobs=(job,))

    def away(*_: Any) -> None:
        raise StoreRetryable("the store is away")

    monkeypatch.setattr(LocalStore, "delete", away)
    assert do_follow_up(studio.farm, id).retry_s is not None
    again = studio.submit("a vase")[1]
    assert again == [job]
    assert dispatch(studio.database, "n") == []
    with studio.database.read() as connection:
        assert "deleted image" in str(pending_reason(connection, job))
    monkeypatch.undo()
    do_follow_up(studio.farm, id)
    assert studio.files() == set()
    # The new job is not the one that was to be deleted.
    assert len(dispatch(studio.database, "n")) == 1
    assert studio.count(jobs) == [1]


def test_running_jobs_are_refused_or_go_once_they_have_stopped(studio: Studio) -> None:
    batch, _ = studio.submit("a vase", "a mug", "a bowl")
    begun = studio.start()
    assert len(begun) == 2
    with studio.database.read() as connection:
        found = find(connection, Selection(batch=batch))
    assert len(found.running) == 2 and len(found.jobs) == 3
    with pytest.raises(IllegalChange, match="and 1 more are running; cancel first, or delete with --cancel"):
        request(studio.farm, found, by="me", audited_as="me")
    assert studio.count(jobs, follow_ups) == [3, 0]
    id = studio.delete(batch=batch, cancel=True)
    assert studio.count(jobs, batches) == [2, 1]
    assert "2 jobs still stopping" in do_follow_up(studio.farm, id).text
    for assignment in begun:
        with studio.database.write() as connection:
            fail(connection, assignment.attempt, "cancelled", None, None)
    # Somebody has retried one of them meanwhile: it stays, and so does the batch.
    with studio.database.write() as connection:
        change_state(connection, begun[0].job, "cancelled", "queued", "retry")
    assert "was changed meanwhile" in do_follow_up(studio.farm, id).text
    assert studio.count(jobs, batches, entries) == [1, 1, 1]
    with studio.database.write() as connection:
        change_state(connection, begun[0].job, "queued", "cancelled", "cancel")
    assert do_follow_up(studio.farm, id).text.startswith("deleted")
    assert studio.count(jobs, batches, entries) == [0, 0, 0]


def test_what_others_wait_for_is_refused_and_goes_with_them(studio: Studio) -> None:
    first, (vase,) = studio.submit("a vase")
    later, _ = studio.submit("a mug", after=(Predecessor(kind="job", id=vase, any=False),))
    with studio.database.read() as connection:
        for chosen in (Selection(jobs=(vase,)), Selection(batch=first)):
            with pytest.raises(BadInput, match="other jobs wait for"):
                find(connection, chosen)
        find(connection, Selection(batch=later))
    studio.delete(batch=later)
    studio.delete(batch=first)
    assert studio.count(jobs, batches) == [0, 0]


def test_some_images_of_a_batch_go(studio: Studio) -> None:
    batch, ids = studio.render("a vase", "a mug", "a bowl")
    id = studio.delete(batch=batch, custom_ids=("A-1", "A-3"))
    do_follow_up(studio.farm, id)
    assert studio.count(jobs, batches, entries) == [1, 1, 1]
    assert {key for key in studio.files() if key.startswith("renditions")} == {
        f"renditions/{batch}/ebay/2.jpg"
    }
    with (
        studio.database.read() as connection,
        pytest.raises(BadInput, match="A-9' is no image of this batch"),
    ):
        find(connection, Selection(batch=batch, custom_ids=("A-9",)))
    assert f"logs/{ids[1]}-0001-n.log" in studio.files()


def test_inputs_that_other_jobs_name_stay(studio: Studio) -> None:
    def photograph(digest: str) -> dict[str, Any]:
        return {"path": f"{digest}.png", "digest": digest * 64, "width": 128, "height": 128}

    _, ids = studio.submit("a vase", "a mug", "a bowl")
    named = [{"init": photograph("a")}, {"init": photograph("b")}, {"reference": [photograph("b")]}]
    with studio.database.write() as connection:
        for job, given in zip(ids, named, strict=True):
            spec = connection.execute(select(jobs.c.spec).where(jobs.c.id == job)).scalar_one()
            connection.execute(update(jobs).where(jobs.c.id == job).values(spec=spec | given))
    for letter in "abc":
        studio.write(f"inputs/{letter * 64}", 7)
    with studio.database.read() as connection:
        found = find(connection, Selection(jobs=tuple(sorted(ids[:2]))))
    assert count_files(studio.farm, found).bytes == 7
    do_follow_up(studio.farm, studio.delete(jobs=tuple(sorted(ids[:2]))))
    assert studio.files() == {f"inputs/{letter * 64}" for letter in "bc"}
    do_follow_up(studio.farm, studio.delete(jobs=(ids[2],)))
    assert studio.files() == {f"inputs/{'c' * 64}"}


def test_replaced_images_go_with_their_batch_and_late_rows_are_not_lost(studio: Studio) -> None:
    batch, (vase, mug) = studio.render("a vase", "a mug")
    with studio.database.write() as connection:
        record_review(connection, batch, [Named("A-1")], "anna", Review(verdict="reject"))
        old = update(entries).where(entries.c.batch == batch, entries.c.custom_id == "A-1")
        connection.execute(old.values(job=mug))
        found = find(connection, Selection(batch=batch))
    assert set(found.jobs) == {vase, mug}, "what was re-rolled belongs to the batch too"
    # Somebody submits one of the images elsewhere after that was found.
    studio.submit("a mug")
    assert remove(studio.database, found.selection, found.jobs, "delete:1") == []
    assert studio.count(jobs, batches, entries, reviews) == [1, 1, 1, 0]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """A farm of commands."""
    yield from studio_of_commands(tmp_path, monkeypatch)


def test_the_command_says_what_goes_and_deletes_with_yes(
    shell: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, ids = shell.render("a vase", "a mug")
    capsys.readouterr()
    for words in ((), ("--dry-run",)):
        assert run("delete", "--batch", batch, *words) == 0
        told = capsys.readouterr().out
        assert f"Would delete batch {batch} with 2 jobs (2 images), 6 files, 2.2 KiB" in told
        assert "--yes" in told
    assert shell.count(jobs) == [2]
    with shell.database.write() as connection:
        record_review(connection, batch, [Named("A-2")], "anna", Review(verdict="reject"))
    assert run("delete", "--batch", batch, "--images", "rejected", "--yes", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["jobs"], answer["deleted"], answer["stopping"], answer["files"]) == (1, True, 0, 3)
    assert run("delete", ids[0][:6], "--yes") == 0
    assert "Deleted 1 job (1 image)" in capsys.readouterr().out
    assert shell.files() == set()
    assert run("delete", "--batch", batch, "--yes") == 0
    assert shell.count(jobs, batches) == [0, 0]
    capsys.readouterr()
    for words, told in (
        (("0123",), "unknown job"),
        (("--batch", "x"), "is unknown"),
        ((), "Name the jobs to delete"),
        (("3fa9", "--images", "all"), "--images needs --batch"),
        (("3fa9", "--dry-run", "--yes"), "not both"),
    ):
        assert run("delete", *words) == 2
        assert told in capsys.readouterr().err
    assert run("audit", "--json") == 0
    acts = json.loads(capsys.readouterr().out)["acts"]
    assert [act["action"] for act in acts].count("delete") == 3
    assert acts[0]["details"]["jobs"] == 0 and acts[2]["details"]["bytes"] == 1110


def test_a_running_job_is_refused_by_the_command(shell: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    _, (job,) = shell.submit("a vase")
    shell.start()
    assert run("delete", job, "--yes") == 3
    assert f"job {job} is running; cancel first, or delete with --cancel" in capsys.readouterr().err
    assert shell.count(jobs) == [1]
