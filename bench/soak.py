"""`make soak`: thousands of small jobs on two slots: do rate, memory and files stay as they are?

`chorale up` renders a batch of different small images in a folder that stays. `--minutes` ends a sitting in
order; the same command goes on where it was stopped. Each sitting is a farm of its own: rates and memory are
compared within it, from its second hundred of jobs to its last.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from subprocess import Popen
from typing import Any
from uuid import uuid4

import click
from sqlalchemy import func, select

from bench.table import hardware, write_section
from infra.database import Database
from infra.database_url import sqlite_url
from jobs.db.schema import upgrade
from jobs.db.state_machine import ENDED
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import jobs
from render.sink import WORK
from render.spec import Spec
from tests.support.cli import processes_with, start

TITLE = "Soak"
HUNDRED = 100
_SAMPLE_S = 2.0
_ROLES = {
    "render.launch.launcher": "launchers",
    "render.launch.rank": "ranks",
    "jobs.node.supervisor": "supervisors",
    "celery": "Celery workers",
    "redis": "broker",
    "jobs.cli.main serve": "board",
    "jobs.cli.main up": "agent",
}
"""Part of a command line -> what the process is; the first that fits."""


@dataclass
class Sitting:
    """What was seen of one farm, from its start to its end."""

    before: int
    """Jobs that were done when it started."""
    ended: list[float] = field(default_factory=list)
    """When each of its jobs ended, in seconds since the epoch."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Jobs done so far, MiB and descriptors by role."""
    left: dict[str, int] = field(default_factory=dict)
    """Processes, and files by kind, that were still there after its end and not before."""
    states: dict[str, int] = field(default_factory=dict)
    load: float = 0.0
    """Of the machine at its end, over a quarter of an hour."""


@click.command()
@click.option("--jobs", "count", default=2000, show_default=True)
@click.option("--minutes", default=0.0, help="End this sitting after so long. [no limit]")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("out/soak"), show_default=True)
def main(count: int, minutes: float, folder: Path) -> None:
    """Render until all jobs are done or the time is over, and write the table; exit 3 unless all is flat."""
    home = folder.absolute()
    home.mkdir(parents=True, exist_ok=True)
    sitting = _sit(home, count, minutes)
    text, holds = _markdown(sitting, count, f'make soak ARGS="--jobs {count} --minutes {minutes:g}"')
    write_section(TITLE, text)
    click.echo(text)
    sys.exit(0 if holds else 3)


def _sit(home: Path, count: int, minutes: float) -> Sitting:
    mark, temporary = f"SOAK_{uuid4().hex}", home / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {"XDG_DATA_HOME": str(home), "TMPDIR": str(temporary), mark: "1"}
    with _database(home) as database:
        _submit(database, count)
        sitting = Sitting(before=_done(database))
        files = _files(home)
        began = datetime.now(UTC).timestamp()
        with (home / "up.log").open("a") as log:
            farm = start("up", "--slots", "2", "--port", "0", log=log, **environment)
            end = time.monotonic() + (minutes * 60 or float("inf"))
            try:
                while time.monotonic() < end and farm.poll() is None and _unfinished(database):
                    time.sleep(_SAMPLE_S)
                    sitting.samples.append(_sample(mark, _done(database) - sitting.before))
            finally:
                _stop(farm)
        ended = (
            select(jobs.c.ended).where(jobs.c.state == "done", jobs.c.ended > began).order_by(jobs.c.ended)
        )
        with database.read() as connection:
            sitting.ended = list(connection.execute(ended).scalars())
            states = select(jobs.c.state, func.count().label("number")).group_by(jobs.c.state)
            sitting.states = {row.state: row.number for row in connection.execute(states)}
    sitting.load = os.getloadavg()[2]
    sitting.left = {"processes": len(processes_with(mark))} | _more(files, _files(home), sitting)
    return sitting


def _stop(farm: Popen[str]) -> None:
    farm.terminate()
    farm.communicate(timeout=120)


@contextmanager
def _database(home: Path) -> Iterator[Database]:
    (home / "chorale").mkdir(exist_ok=True)
    database = Database(sqlite_url(home / "chorale" / "farm.db"))
    upgrade(database)
    yield database
    database.close()


def _submit(database: Database, count: int) -> None:
    """All jobs; those that are known from an earlier sitting stay as they are."""
    specs = (Spec(prompt="a red vase", seed=seed, width=128, height=128, steps=2) for seed in range(count))
    items = (BatchItem(row=row, custom_id=str(row), spec=spec) for row, spec in enumerate(specs))
    submit(database, items, "soak", JobOptions(owner="soak", ranks=1))


def _done(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).where(jobs.c.state == "done")).scalar_one()


def _unfinished(database: Database) -> int:
    ended = jobs.c.state.in_(("done", "failed", "cancelled"))
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(jobs).where(~ended)).scalar_one()


def _sample(mark: str, done: int) -> dict[str, Any]:
    """Memory (proportional set size, MiB) and open descriptors of each kind of process, in sum."""
    memory, descriptors = defaultdict(float), defaultdict(int)
    for pid, command in processes_with(mark).items():
        role = next((name for part, name in _ROLES.items() if part in command), "others")
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            descriptors[role] += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
        memory[role] += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return {"done": done, "memory": dict(memory), "descriptors": dict(descriptors)}


def _files(home: Path) -> dict[str, int]:
    """Files by kind. Each image has a folder, and each attempt a log: those are meant to stay."""
    kept = home / "chorale" / "images", home / "chorale" / "logs"
    found = [path for path in home.rglob("*") if not any(root in path.parents for root in kept)]
    sockets = sum(path.is_socket() for path in found)
    # torch makes one folder for a cache of its own, and keeps it.
    temporary = sum(home / "tmp" in path.parents and "torchinductor" not in str(path) for path in found)
    work = sum(1 for _ in kept[0].glob(f"*/{WORK}*"))
    return {
        "sockets": sockets,
        "temporary files": temporary,
        "files of unfinished work": work,
    }


def _more(before: dict[str, int], after: dict[str, int], sitting: Sitting) -> dict[str, int]:
    # An image that was interrupted keeps its checkpoint, and goes on from there in the next sitting.
    meant = {"files of unfinished work"} if sitting.states.keys() - set(ENDED) else set()
    return {kind: after[kind] - before[kind] for kind in after if kind not in meant}


def _markdown(sitting: Sitting, count: int, command: str) -> tuple[str, bool]:
    rows: list[tuple[str, str, str]] = []
    holds = True

    def add(name: str, value: str, wanted: str = "", good: bool = True) -> None:
        nonlocal holds
        holds &= good
        rows.append((name, value, f"{wanted}: {'yes' if good else 'NO'}" if wanted else ""))

    here = len(sitting.ended)
    add("jobs of this sitting, of all", f"{here} of {count}")
    add("load of the machine over its last quarter of an hour", f"{sitting.load:.1f}")
    add("jobs by state at its end", ", ".join(f"{n} {state}" for state, n in sorted(sitting.states.items())))
    first, last = (_rate(part) for part in (sitting.ended[:HUNDRED], sitting.ended[-HUNDRED:]))
    if here >= 2 * HUNDRED:
        change = last / first - 1
        add(
            "jobs a minute, first and last hundred",
            f"{first:.1f}, {last:.1f} ({change:+.1%})",
            "within 5 %",
            abs(change) <= 0.05,
        )
    later = [sample for sample in sitting.samples if sample["done"] >= HUNDRED]
    for kind, unit in (("memory", "MiB"), ("descriptors", "")):
        for role in sorted({role for sample in later for role in sample[kind]}):
            values = [sample[kind].get(role, 0.0) for sample in later]
            start_of, end_of = (
                median(part)
                for part in (values[: max(1, len(values) // 10)], values[-max(1, len(values) // 10) :])
            )
            change = end_of / start_of - 1 if start_of else 0.0
            shown = f"{start_of:.1f} {unit}, {end_of:.1f} {unit} ({change:+.1%})".replace(" ,", ",").replace(
                " (", " ("
            )
            add(
                f"{kind} of {role}, after the first hundred and at the end",
                shown,
                "at most 5 % more",
                change <= 0.05,
            )
    for kind, number in sitting.left.items():
        add(f"{kind} left", str(number), "0", number <= 0)
    lines = [f"## {TITLE}", "", f"{datetime.now(UTC).date().isoformat()}, {hardware()}. `{command}`", ""]
    lines += ["| what | measured | wanted |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    return "\n".join(lines) + "\n", holds and here >= 2 * HUNDRED


def _rate(ended: list[float]) -> float:
    """Jobs a minute."""
    return 0.0 if len(ended) < 2 else 60 * (len(ended) - 1) / max(1e-9, ended[-1] - ended[0])


if __name__ == "__main__":
    main()
