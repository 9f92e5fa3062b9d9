"""Renditions that the farm makes: tasks of real Celery workers, which are killed on the way."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import func, select, update

from infra.broker import embedded_redis
from infra.database import Database, now
from infra.settings import read_settings
from infra.store.local import LocalStore
from jobs.board.access import Access
from jobs.board.app import make_app as board_app
from jobs.board.board import Board
from jobs.cli.main import main
from jobs.db.folders import image_folder
from jobs.db.queries import show_job
from jobs.db.reviews import Named, Review, record_review
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import entries, follow_ups, jobs, renditions
from jobs.farm import RENDITIONS, Farm
from jobs.follow_ups import do_follow_up
from jobs.node.follow_up_rounds import FollowUpRounds
from jobs.node.tasks import make_app
from jobs.node.workers import Worker, rendition_worker
from jobs.renditions.farm import ask_for, list_renditions, note_due, wanted_channels
from jobs.review.reroll import Asked, Changes, reroll
from render.errors import BadInput
from render.spec import Spec
from tests.support.asgi import ask
from tests.support.cli import wait_until
from tests.support.finished_batch import finish, finished_batch, settings_of

CHANNEL = """
name: tiny
title: A tiny channel
source: this test
checked: 2026-11-30
file_name: "{base_id}"
rendition: {width: 48, height: 48, background: white}
rules: {shortest_side: 48, formats: [jpeg]}
"""


@pytest.fixture(autouse=True)
def _own_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "chorale" / "channels"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(CHANNEL)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    """Of the batch that `finished_batch` makes in the same folder."""
    database = Database(settings_of(tmp_path)["CHORALE_DATABASE_URL"])
    yield Farm(settings=read_settings({"store_url": str(tmp_path / "images")}), database=database, url="")
    database.close()


def ask_tiny(farm: Farm, batch: str) -> None:
    with farm.database.write() as connection:
        ask_for(connection, batch, wanted_channels(["tiny"], files=False))


def work_off(farm: Farm) -> list[str]:
    """Do what is due, as an agent without a broker does it."""
    note_due(farm)
    return do_all(farm)


def do_all(farm: Farm) -> list[str]:
    with farm.database.read() as connection:
        ids = connection.execute(select(follow_ups.c.id).where(follow_ups.c.ended.is_(None))).scalars().all()
    return [do_follow_up(farm, id).text for id in ids]


def files(folder: Path, batch: str) -> dict[str, bytes]:
    """The renditions by name, as the store lists them: without what a killed worker had begun to write."""
    store = LocalStore(folder / "images" / RENDITIONS / batch)
    return {Path(entry.key).name: store.get(entry.key) for entry in store.entries()}


def check_whole(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert (image.format, image.size) == ("JPEG", (48, 48))


def test_each_image_is_made_when_it_is_done_and_after_a_re_roll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, farm: Farm
) -> None:
    batch = finished_batch(tmp_path, monkeypatch, ("A-1", "a-1", "B"), 1)
    ask_tiny(farm, batch)
    assert work_off(farm) == ["A-1.jpg for tiny: made"]
    with farm.database.read() as connection:
        specs = connection.execute(select(jobs.c.spec).where(jobs.c.state == "queued")).scalars().all()
    for spec in specs:
        finish(farm.database, tmp_path / "images", Spec.from_mapping(spec))
    assert sorted(work_off(farm)) == ["B.jpg for tiny: made", "a-1-row2.jpg for tiny: made"]
    assert work_off(farm) == [] and note_due(farm) == 0
    first = files(tmp_path, batch)
    for data in first.values():
        check_whole(data)
    asked = Asked(by="me", audited_as="me")
    (again,) = reroll(farm.database, LocalStore(tmp_path / "images"), batch, ["B"], Changes(), asked)
    assert work_off(farm) == []
    with farm.database.read() as connection:
        spec = show_job(connection, again.job)["spec"]
    finish(farm.database, tmp_path / "images", Spec.from_mapping(spec))
    assert work_off(farm) == ["B.jpg for tiny: made"]
    second = files(tmp_path, batch)
    assert second["B.jpg"] != first["B.jpg"] and second["A-1.jpg"] == first["A-1.jpg"]
    assert set(second) == {"A-1.jpg", "a-1-row2.jpg", "B.jpg"}


def test_a_rendition_of_an_image_that_was_replaced_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, farm: Farm
) -> None:
    batch = finished_batch(tmp_path, monkeypatch, ("A-1",), 1)
    ask_tiny(farm, batch)
    note_due(farm)
    with farm.database.write() as connection:
        connection.execute(update(renditions).values(job="another"))
    assert do_all(farm) == ["another image has taken its place"] and files(tmp_path, batch) == {}


def test_what_cannot_be_made_is_recorded_and_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, farm: Farm
) -> None:
    batch = finished_batch(tmp_path, monkeypatch, ("A-1", "A-2"), 2)
    ask_tiny(farm, batch)
    with farm.database.read() as connection:
        gone = image_folder(
            connection, connection.execute(select(entries.c.job).order_by(entries.c.row)).scalars().first()
        )
    (tmp_path / "images" / gone / "manifest.json").write_text("{")
    assert len(work_off(farm)) == 2
    with farm.database.read() as connection:
        rows = list_renditions(connection, batch, "tiny")
    assert [bool(row["made"]) for row in rows] == [False, True]
    assert rows[0]["problem"] and len(files(tmp_path, batch)) == 1


@pytest.mark.parametrize("name", ["amzon", "../../etc/passwd", "tiny.yaml", "x" * 65])
def test_an_unknown_channel_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="channel"):
        wanted_channels([name], files=False)


def test_the_command_asks_at_submission_and_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, farm: Farm, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = finished_batch(tmp_path, monkeypatch, ("A-1",), 1)

    def answer(*words: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--json"])
        assert not ended.value.code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert answer("export", "--batch", batch, "--channel", "tiny", "--detach")["channels"] == ["tiny"]
    words = ("submit", "a vase", "--seed", "1", "--size", "128x96", "--steps", "2", "--channel", "tiny")
    own = answer(*words, "--spec", str(_tiles(tmp_path)))
    assert (own["new"], own["done"]) == (0, 1)
    assert len(work_off(farm)) == 2
    assert set(files(tmp_path, batch)) == {"A-1.jpg"} and set(files(tmp_path, own["batch"])) == {"image.jpg"}


def _tiles(folder: Path) -> Path:
    """What the image of the finished batch has beside the flags."""
    spec = folder / "spec.yaml"
    spec.write_text("tile_size: 64\n")
    return spec


def test_the_board_has_them_one_by_one_and_as_a_zip_of_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, farm: Farm
) -> None:
    batch = finished_batch(tmp_path, monkeypatch, ("A-1", "A-2", "A-3"), 2)
    app = board_app(Board(farm, Access()))
    address = f"/api/v1/batches/{batch}/renditions"
    asked = ask(app, address, "POST", b'{"channels": ["tiny"]}', {"content-type": "application/json"})
    assert (asked.status, asked.json["channels"]) == (202, ["tiny"])
    assert ask(app, f"{address}/tiny.zip").status == 404
    work_off(farm)
    shown = ask(app, address).json
    assert shown["channels"] == ["tiny"] and [row["custom_id"] for row in shown["renditions"]] == [
        "A-1",
        "A-2",
    ]
    one = ask(app, f"{address}/tiny/A-1.jpg")
    assert one.headers["content-disposition"].startswith('attachment; filename="A-1.jpg"')
    check_whole(one.body)
    assert ask(app, f"{address}/tiny/..%2F..%2Fmanifest.json").status == 404
    names = _names(ask(app, f"{address}/tiny.zip").body)
    assert names == {"A-1.jpg", "A-2.jpg", "report.jsonl"}
    with farm.database.write() as connection:
        record_review(connection, batch, [Named("A-2")], "me", Review(verdict="keep"))
    assert _names(ask(app, f"{address}/tiny.zip").body) == {"A-2.jpg", "report.jsonl"}
    assert len(_names(ask(app, f"{address}/tiny.zip?all=true").body)) == 3
    page = ask(app, f"/batches/{batch}", headers={"accept": "text/html"}).body.decode()
    assert "A tiny channel" in page and f"{address}/tiny.zip" in page
    job = shown["renditions"][0]["job"]
    whole = ask(app, f"/jobs/{job}/download?format=webp&name=Vase%20gro%C3%9F")
    assert "filename*=UTF-8''Vase%20gro%C3%9F.webp" in whole.headers["content-disposition"]
    with Image.open(io.BytesIO(whole.body)) as image:
        assert image.size == (128, 96)
    acts = ask(app, "/api/v1/audit?action=renditions").json["acts"]
    assert [act["target"] for act in acts] == [f"batch {batch}"]


def _names(packed: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(packed)) as opened:
        assert opened.testzip() is None
        return set(opened.namelist())


@pytest.mark.parametrize(
    ("images", "kills"), [(20, 1), pytest.param(300, 10, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_two_workers_of_which_one_is_killed_make_every_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, farm: Farm, images: int, kills: int
) -> None:
    batch = _batch_of_one_image(tmp_path, monkeypatch, farm, images)
    ask_tiny(farm, batch)
    chance = random.Random(7)
    with embedded_redis(tmp_path / "redis") as broker:
        app, url = make_app(broker), settings_of(tmp_path)["CHORALE_DATABASE_URL"]
        steady = rendition_worker("steady", tmp_path, broker, url)
        victim = rendition_worker("victim", tmp_path, broker, url)
        rounds = FollowUpRounds(farm, app, None, steady)
        try:
            victim.keep()
            for kill in range(kills + 1):
                rounds.look()
                more = chance.randrange(1, max(2, images // (2 * kills)))
                wanted = min(images, len(files(tmp_path, batch)) + more)
                wait_until(partial(_again, rounds, farm, batch, tmp_path, wanted), 120)
                if kill < kills:
                    _kill(victim)
                    victim.keep()
            wait_until(lambda: _again(rounds, farm, batch, tmp_path, images), 300)
            wait_until(lambda: _open_follow_ups(rounds, farm) == 0, 120)
        finally:
            steady.stop()
            victim.stop()
    made = files(tmp_path, batch)
    assert len(made) == images, "none is missing, and no torn or temporary file is left under a name"
    for data in made.values():
        check_whole(data)
    with farm.database.read() as connection:
        rows = list_renditions(connection, batch)
    assert Counter(row["file"] for row in rows) == Counter(made.keys())
    assert {row["bytes"] for row in rows} == {len(data) for data in made.values()}


def _batch_of_one_image(folder: Path, environment: pytest.MonkeyPatch, farm: Farm, images: int) -> str:
    """A batch whose jobs are all done: each with the same pixels in a folder of its own, but for its id."""
    finished_batch(folder, environment, ("first",), 1)
    with farm.database.read() as connection:
        done = connection.execute(select(jobs)).one()
    specs = [Spec.from_mapping(done.spec).with_changes(seed=seed) for seed in range(2, images + 2)]
    items = [BatchItem(row=n, custom_id=f"A-{n:03}", spec=spec) for n, spec in enumerate(specs, 1)]
    receipt = submit(farm.database, items, "feed.csv", JobOptions(owner="me"))
    with farm.database.write() as connection:
        mine = update(jobs).where(jobs.c.state == "queued")
        values = {"state": "done", "root": done.root, "folder": done.digest, "ended": now()}
        connection.execute(mine.values(**values))
    return receipt.batch


def _kill(worker: Worker) -> None:
    process = worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _again(rounds: FollowUpRounds, farm: Farm, batch: str, folder: Path, wanted: int) -> bool:
    """Whether so many files are there; until then what a killed worker had is announced again, as a minute
    later would."""
    _open_follow_ups(rounds, farm)
    return len(files(folder, batch)) >= wanted


def _open_follow_ups(rounds: FollowUpRounds, farm: Farm) -> int:
    with farm.database.write() as connection:
        lost = follow_ups.c.ended.is_(None) & (follow_ups.c.claimed_until < now())
        connection.execute(update(follow_ups).where(lost).values(due=now() - 1))
        left = select(func.count()).select_from(follow_ups).where(follow_ups.c.ended.is_(None))
        found: int = connection.execute(left).scalar_one()
    rounds.look()
    return found
