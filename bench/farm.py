"""The farm's own figures: submission, listing, placement, hand-over between jobs on a warm group."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.command_usage import run_command
from bench.table import Row
from infra.database import Database
from jobs.db.claims import claim, make_ready
from jobs.db.nodes import register, renew
from jobs.db.outcomes import finish
from jobs.db.queries import Filter, count_jobs, list_jobs
from jobs.db.schema import upgrade
from jobs.db.state_machine import change_state
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.node.node_lease import RENEW_S
from jobs.scheduler.dispatcher import dispatch
from render.spec import Spec
from tests.support.services import postgres_binaries, postgres_server

CHORALE = [sys.executable, "-m", "jobs.cli.main"]
MANY = 100_000
PLACEMENTS = 2_000
NODES = 100
WARM_JOBS = 200


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="farm-") as name:
        folder = Path(name)
        return [*_submission(folder), *_placements(folder), *_hand_over(folder)]


def _submission(folder: Path) -> Iterator[Row]:
    """A file of 100,000 rows through the command line, then what looking at them costs."""
    file = folder / "many.jsonl"
    with file.open("w") as lines:
        for number in range(MANY):
            row = {"custom_id": str(number), "prompt": f"vase {number}", "seed": number}
            lines.write(json.dumps(row) + "\n")
    url = f"sqlite:///{folder / 'many.db'}"
    words = ["submit", str(file), "--size", "512x512", "--database-url", url, "--json"]
    usage = run_command([*CHORALE, *words])
    assert usage.status == 0, usage.errors
    yield Row(f"{MANY:,} rows submitted: seconds", usage.seconds, "<= 60")
    yield Row(f"{MANY:,} rows submitted: peak MiB", usage.peak_bytes / 2**20, "<= 300")
    database = Database(url)

    def look() -> float:
        started = time.perf_counter()
        with database.read() as connection:
            count_jobs(connection, Filter())
            list_jobs(connection, Filter(), 50)
        return (time.perf_counter() - started) * 1000

    yield Row(f"list and watch at {MANY:,} jobs: ms", median(look() for _ in range(5)), "<= 200")
    with database.write() as connection:
        register(connection, "n", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    started = time.perf_counter()
    dispatch(database, "n")
    yield Row(f"a dispatcher's round at {MANY:,} jobs: ms", (time.perf_counter() - started) * 1000, "")
    database.close()


def _placements(folder: Path) -> Iterator[Row]:
    """Jobs that take no time, from the queue to done, on a hundred nodes."""
    with _clean(Database(f"sqlite:///{folder / 'place.db'}")) as database:
        yield Row("no-op placements on SQLite: per second", _placed_per_second(database), ">= 50")
    if postgres_binaries() is None:
        return
    with postgres_server(folder) as url, _clean(Database(url)) as database:
        yield Row("no-op placements on PostgreSQL: per second", _placed_per_second(database), ">= 200")


@contextmanager
def _clean(database: Database) -> Iterator[Database]:
    upgrade(database)
    yield database
    database.close()


def _placed_per_second(database: Database) -> float:
    names = [f"n{number}" for number in range(NODES)]
    with database.write() as connection:
        for name in names:
            register(connection, name, address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)
    specs = (Spec(prompt="a vase", seed=number, width=128, height=128) for number in range(PLACEMENTS))
    asked = (BatchItem(row=number, custom_id=str(number), spec=spec) for number, spec in enumerate(specs))
    submit(database, asked, "no-op", JobOptions(owner="bench", ranks=1))
    started, renewed, done = time.perf_counter(), 0.0, 0
    while done < PLACEMENTS:
        # As often as agents do it.
        if time.perf_counter() - renewed > RENEW_S:
            with database.write() as connection:
                for name in names:
                    renew(connection, name, "bench", [])
            renewed = time.perf_counter()
        for node, attempt, _ in dispatch(database, names[0]):
            with database.write() as connection:
                part = claim(connection, attempt, node, "bench")
                assert part is not None
                make_ready(connection, part, "127.0.0.1:1")
                change_state(connection, part.job, "placing", "rendering", "", expected_fence=part.fence)
                change_state(connection, part.job, "rendering", "publishing", "", expected_fence=part.fence)
                finish(connection, part, "root", 0.0)
            done += 1
    return PLACEMENTS / (time.perf_counter() - started)


def _hand_over(folder: Path) -> Iterator[Row]:
    """Native-size pictures on one warm group: what passes between two of them, as their logs tell."""
    home = {"XDG_DATA_HOME": str(folder / "home"), "CHORALE_NODE": "n"}
    file = folder / "batch.jsonl"
    rows: list[dict[str, Any]] = [
        {"custom_id": str(number), "prompt": "a red vase", "seed": number} for number in range(WARM_JOBS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(*words: str) -> dict[str, Any]:
        completed = subprocess.run(
            [*CHORALE, *words, "--json"], env=os.environ | home, stdout=subprocess.PIPE, check=True
        )
        answer: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
        return answer

    batch = call("submit", str(file), "--size", "128x128", "--ranks", "1")["batch"]
    words = [*CHORALE, "up", "--slots", "1"]
    farm = subprocess.Popen(words, env=os.environ | home, stderr=subprocess.DEVNULL)
    try:
        call("wait", "--batch", batch, "--timeout", "3600")
    finally:
        farm.terminate()
        farm.wait(60)
    texts = [log.read_text() for log in (folder / "home" / "chorale" / "logs").glob("*-*-*.log")]
    gaps = [float(gap) for text in texts for gap in re.findall(r"taken over after ([\d.]+) s", text)]
    assert len(gaps) >= WARM_JOBS // 2, "the group was not warm"
    model = [sum(map(float, re.findall(r"model ([\d.]+) s", text))) for text in texts]
    yield Row("warm hand-over: ms", median(gaps) * 1000, "")
    yield Row("warm hand-over over a native picture's model time", median(gaps) / median(model), "<= 0.05")
