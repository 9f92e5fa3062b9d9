"""From the submission of a job to its launch on an idle farm, with and without a broker."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from sqlalchemy import select

from bench.table import Row
from infra.broker import embedded_redis
from infra.database import Database
from jobs.db.tables import jobs, members
from tests.support.cli import wait_until
from tests.support.machines import Machines

TIMES = 5
_QUIET_S = 8.0
"""Until the agents and their workers have started, and between two jobs until the slots are idle."""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="launches-") as name:
        return [*_launches(Path(name), "with a broker", "<= 0.3"), *_launches(Path(name), "without one", "")]


def _launches(folder: Path, how: str, wanted: str) -> Iterator[Row]:
    home = folder / how.replace(" ", "-")
    home.mkdir()
    with ExitStack() as stack:
        broker = stack.enter_context(embedded_redis(home / "redis")) if wanted else ""
        url = f"sqlite:///{home / 'farm.db'}"
        farm = Machines(home, url, CHORALE_BROKER_URL=broker, CHORALE_WARM_S="0")
        stack.callback(farm.shut_down)
        for name in ("n1", "n2"):
            farm.boot(name)
        database = Database(url)
        stack.callback(database.close)
        found = [_seconds(farm, database, seed) for seed in range(TIMES)]
    yield Row(f"submit to launch on an idle farm {how}: seconds (median)", median(found), wanted)
    yield Row("... the slowest", max(found), "")


def _seconds(farm: Machines, database: Database, seed: int) -> float:
    """From the job's row to the claim of its part, as another process sees both, each 2 ms."""
    time.sleep(_QUIET_S)
    words = ("a red vase", "--size", "128x128", "--steps", "1", "--ranks", "1", "--seed", str(seed))
    with database.read() as connection:
        before = len(connection.execute(select(members.c.attempt)).all())
    process = farm.begin("submit", *words)
    launched: float | None = None
    while launched is None:
        with database.read() as connection:
            claims = connection.execute(select(members.c.claimed_by)).scalars().all()
            created = connection.execute(select(jobs.c.created).order_by(jobs.c.created.desc())).scalar()
        if len(claims) > before and all(claims):
            launched = time.time()
        time.sleep(0.002)
    process.wait()
    assert created is not None
    wait_until(lambda: farm.count("done") == seed + 1, 120)
    return launched - created
