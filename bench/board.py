"""The board's own figures: its job list at 100,000 jobs, and a tile through it beside a direct one."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np
from sqlalchemy import delete, update

from bench.farm import MANY
from bench.table import Row
from infra.database import Database
from jobs.db.schema import upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import entries, events, jobs
from render.output.encode import encode
from render.spec import Spec
from tests.support.board import RunningBoard, running_board
from tests.support.cli import wait_until
from tests.support.services import free_port

_TIMES = 15
_TILES = 300
_LISTS = {
    "newest page, as HTML": "/jobs",
    "newest page of a state": "/jobs?state=queued",
    "a page from the middle": "/jobs?after={middle}",
    "a search for words": "/jobs?q=vase+99999",
    "newest page, by the API": "/api/v1/jobs",
}


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="board-") as name:
        folder = Path(name)
        return [*_lists(folder), *_tiles(folder)]


def _lists(folder: Path) -> Iterator[Row]:
    home = folder / "many"
    (home / "chorale").mkdir(parents=True)
    database = Database(f"sqlite:///{home / 'chorale' / 'farm.db'}")
    upgrade(database)
    specs = (Spec(prompt=f"vase {number}", seed=number, width=512, height=512) for number in range(MANY))
    asked = (BatchItem(row=number, custom_id=str(number), spec=spec) for number, spec in enumerate(specs))
    submit(database, asked, "many", JobOptions(owner="bench"))
    with database.read() as connection:
        middle = connection.execute(jobs.select().order_by(jobs.c.created).offset(MANY // 2).limit(1)).one()
    database.close()
    with running_board(home, "serve", "--port", "0") as board:
        board.ask("/")  # The estimate looks at every job, once in 15 seconds.
        for what, path in _LISTS.items():
            place = path.format(middle=f"{middle.created!r}_{middle.id}")
            yield Row(f"job list at {MANY:,} jobs, {what}: ms", _milliseconds(board, place), "<= 100")


def _milliseconds(board: RunningBoard, path: str) -> float:
    def once() -> float:
        started = time.perf_counter()
        assert board.ask(path).status == 200
        return (time.perf_counter() - started) * 1000

    return median(once() for _ in range(_TIMES))


def _tiles(folder: Path) -> Iterator[Row]:
    """A tile of 512 px from the store through the board, and the same file from a bare file server."""
    home, digest, key = folder / "tiles", "d" * 64, "image_files/9/0_0.png"
    tile = home / "chorale" / "images" / digest / key
    tile.parent.mkdir(parents=True)
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    tile.write_bytes(encode(noise.repeat(8, axis=0).repeat(8, axis=1), "png", 90))
    _finish_a_job(Database(f"sqlite:///{home / 'chorale' / 'farm.db'}"), digest)
    with running_board(home, "serve", "--port", "0") as board, _file_server(tile.parent) as port:
        through = http.client.HTTPConnection(urlsplit(board.address).netloc, timeout=30)
        direct = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=30)
        # In turns, so that whatever else the machine does slows both.
        pairs = [
            (_seconds(through, f"/jobs/{digest[:16]}/image/{key}"), _seconds(direct, "/0_0.png"))
            for _ in range(_TILES)
        ]
    ours, theirs = (median(each) for each in zip(*pairs, strict=True))
    yield Row("a tile through the board: ms", ours * 1000, "")
    yield Row("the same file from Starlette's file server: ms", theirs * 1000, "")
    yield Row("a tile through the board over a direct one", ours / theirs, "<= 1.5")


def _finish_a_job(database: Database, digest: str) -> None:
    upgrade(database)
    submit(
        database,
        iter([BatchItem(row=1, custom_id="1", spec=Spec(prompt="a vase"))]),
        "one",
        JobOptions(owner="b"),
    )
    with database.write() as connection:
        connection.execute(delete(events))
        connection.execute(delete(entries))
        connection.execute(update(jobs).values(id=digest[:16], digest=digest, state="done", root="r" * 64))
    database.close()


@contextmanager
def _file_server(folder: Path) -> Iterator[int]:
    port = free_port()
    program = (
        "import sys, uvicorn; from starlette.staticfiles import StaticFiles;"
        "uvicorn.run(StaticFiles(directory=sys.argv[1]), port=int(sys.argv[2]), log_level='error')"
    )
    server = subprocess.Popen([sys.executable, "-c", program, str(folder), str(port)])
    try:
        wait_until(lambda: _listens(port))
        yield port
    finally:
        server.terminate()
        server.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _seconds(connection: http.client.HTTPConnection, path: str) -> float:
    started = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read()
    return time.perf_counter() - started
