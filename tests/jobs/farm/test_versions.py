"""Two versions of the program side by side, whose images differ in their bits: they never share a key."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select, text, update

from infra.database import Database
from infra.settings import Settings
from infra.store.base import Store
from infra.store.open import open_store
from infra.store.s3_client import forget_clients
from jobs.db.folders import digest_of
from jobs.db.tables import attempts, jobs
from render.numerics import NUMERICS
from render.sink import CHECKPOINT
from tests.support.buckets import Bucket, credentials
from tests.support.cli import chorale, last_json, processes_with, start, wait_until
from tests.support.machines import Machines
from tests.support.relay import Relay, relay
from tests.support.versions import other_version

LONG = ("a red vase", "--size", "256x256", "--steps", "24", "--strength", "1", "--seed", "5")
LONG_STEPS = 48
"""Of its two stages."""
SECONDS = 200


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, dict[str, str]]]:
    """The farm's store, and what its nodes need to reach it."""
    if request.param == "folder":
        url = str(tmp_path / "images")
        yield open_store(url, Settings()), {"CHORALE_STORE_URL": url}
        return
    bucket: Bucket = request.getfixturevalue("swift")
    forget_clients()
    with credentials(bucket):
        url = bucket.fresh_url()
        yield bucket.store(url), bucket.environment | {"CHORALE_STORE_URL": url}
    forget_clients()


@pytest.fixture
def database_url(postgres_url: str) -> str:
    database = Database(postgres_url)
    with database.write() as connection:
        connection.execute(text("drop schema public cascade; create schema public"))
    database.close()
    return postgres_url


@pytest.fixture
def cuttable(database_url: str) -> Iterator[tuple[Relay, str]]:
    """The way of one node to the database."""
    address = urlsplit(database_url)
    with relay(address.hostname or "", address.port or 0) as made:
        yield made, database_url.replace(f":{address.port}", f":{made.port}")


@pytest.mark.timeout(900)
def test_a_version_that_lost_its_database_spoils_nothing_of_the_other(
    images: tuple[Store, dict[str, str]],
    database_url: str,
    cuttable: tuple[Relay, str],
    tmp_path: Path,
) -> None:
    # J: version 1 renders > it stops, and loses its database > version 2 takes the job > version 1 wakes up
    # and goes on beside version 2; both publish.
    store, environment = images
    environment |= {"CHORALE_CHECKPOINT_S": "0.1"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = Machines(tmp_path / "one", cuttable[1], **environment)
    two = Machines(tmp_path / "two", database_url, **environment)
    prefix, database = other_version(tmp_path / "version2"), Database(database_url)
    try:
        one.boot("one")
        batch = two.call("submit", *LONG, "--ranks", "1")["batch"]
        (first,) = wait_until(lambda: folders_with(store, CHECKPOINT), SECONDS)
        stopped = processes_with(one.mark)
        send(stopped, signal.SIGSTOP)
        cuttable[0].cut()
        two.boot("two", prefix=prefix, wait=False)
        second = wait_until(lambda: set(folders_with(store, CHECKPOINT)) - {first}, SECONDS).pop()
        # The ranks alone: their supervisor would end them, for want of the database.
        send([pid for pid, line in stopped.items() if "render.launch" in line], signal.SIGCONT)
        wait_until(lambda: len(finished(store)) == 2, SECONDS)
        wait_until(lambda: state_of(database) == "done", SECONDS)
        results = tmp_path / "results"
        two.call("batches", batch, "--results", str(results))
        verified = {folder: two.call("verify", store.url(folder)) for folder in (first, second)}
        job = two.job()
    finally:
        send(processes_with(one.mark), signal.SIGKILL)
        one.shut_down()
        two.shut_down()
        database.close()
    assert all(each["passes"] for each in verified.values()), "no tile of either was overwritten"
    assert first != second and {digest_of(first), digest_of(second)} == {job["digest"]}
    roots = {folder: each["root"] for folder, each in verified.items()}
    assert roots[first] != roots[second], "the versions differ"
    assert (job["folder"], job["root"]) == (second, roots[second])
    assert sum(event["new"] == "done" for event in job["events"]) == 1
    assert f"{second}/manifest.json" in (results / "output.jsonl").read_text()


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_location_goes_from_one_version_to_the_other_and_stays_finished(tmp_path: Path) -> None:
    """`chorale render --out`: unfinished work of other numerics is removed, a finished image is left."""
    out, prefix = tmp_path / "out", other_version(tmp_path / "version2")
    words = ("render", *LONG, "--ranks", "1", "--out", str(out), "--checkpoint-every", "0", "--json")
    begun = start(*words)
    wait_until(lambda: (out / CHECKPOINT).exists(), SECONDS)
    begun.terminate()
    begun.communicate(timeout=60)
    assert begun.returncode == 4
    other = chorale(*words, prefix=prefix)
    assert "unfinished work of another version" in other.stderr and other.returncode == 0, other.stderr
    again = last_json(chorale(*words).stdout)
    assert (again["root"], again["already"]) == (last_json(other.stdout)["root"], True)
    assert chorale("verify", str(out)).returncode == 0


@pytest.mark.timeout(900)
def test_a_farm_of_version_0_1_goes_on(tmp_path: Path) -> None:
    """Its database, its finished images and its half-done checkpoint, in folders named by the digest."""
    farm = Machines(tmp_path, f"sqlite:///{tmp_path / 'farm.db'}", CHORALE_CHECKPOINT_S="0.1")
    images = tmp_path / "chorale" / "images"
    small = ("a blue vase", "--size", "128x128", "--steps", "4")
    first = farm.call("submit", *small, "--priority", "90")["jobs"][0]["id"]
    batch = farm.call("submit", *LONG)["batch"]
    job = farm.call("list", "--batch", batch)["jobs"][0]["id"]
    database = Database(farm.environment["CHORALE_DATABASE_URL"])
    try:
        farm.boot("n1", wait=False)
        wait_until(lambda: state_of(database, first) == "done", SECONDS)
        wait_until(farm.checkpoint, SECONDS)
        farm.call("pause", job)
        wait_until(lambda: not is_active(database, job), SECONDS)
        make_old(database, images)
        farm.call("resume", job)
        wait_until(lambda: state_of(database, job) == "done", SECONDS)
        done = farm.call("list", "--state", "done")["jobs"]
        shown = {each["id"]: farm.call("show", each["id"]) for each in done}
        checked = [farm.call("verify", str(images / each["folder"])) for each in shown.values()]
        logs = farm.call("logs", job)["logs"]
    finally:
        farm.shut_down()
        database.close()
    assert len(checked) == 2 and all(each["passes"] for each in checked)
    new, (old,) = shown.pop(job), list(shown.values())
    assert new["folder"] != new["digest"] and old["folder"] == old["digest"]
    last = list(logs.values())[-1]
    assert "found a checkpoint of an older version" in last
    # Its numerics are others: an image is never made of steps of both.
    assert len(re.findall(r"^\S+ step \d+ of", last, re.MULTILINE)) == LONG_STEPS, "it began again"
    assert (images / new["digest"] / CHECKPOINT).exists(), "the old folder is left as it is"
    assert new["root"] == root_of_one_rank(tmp_path)


def send(pids: Iterable[int], what: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)


def state_of(database: Database, job: str | None = None) -> str:
    with database.read() as connection:
        statement = select(jobs.c.state) if job is None else select(jobs.c.state).where(jobs.c.id == job)
        return str(connection.execute(statement).scalar_one())


def make_old(database: Database, images: Path) -> None:
    """The farm as version 0.1 would have left it."""
    for folder in images.iterdir():
        if "-" in folder.name:
            folder.rename(folder.with_name(folder.name.partition("-")[0]))
    for path in images.glob(f"*/{CHECKPOINT}"):
        relabel(path)
    with database.write() as connection:
        for table in (jobs, attempts):
            connection.execute(update(table).values(folder=None))


def relabel(checkpoint: Path) -> None:
    """Give a checkpoint the identity that version 0.1 wrote."""
    data = checkpoint.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(f"numerics-{NUMERICS}".encode(), b"chorale-0.1.0").rstrip()
    header += b" " * (-len(header) % 8)
    checkpoint.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def is_active(database: Database, job: str) -> bool:
    with database.read() as connection:
        statement = select(attempts.c.id).where(attempts.c.job == job, attempts.c.ended.is_(None))
        return connection.execute(statement).first() is not None


def folders_with(store: Store, key: str) -> list[str]:
    return [name for name in store.folders() if store.size(f"{name}/{key}") is not None]


def finished(store: Store) -> list[str]:
    return folders_with(store, "manifest.json")


def root_of_one_rank(tmp_path: Path) -> str:
    out = str(tmp_path / "alone")
    done = chorale("render", *LONG, "--ranks", "1", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    root: str = last_json(done.stdout)["root"]
    return root
