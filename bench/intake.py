"""Intake of a large batch beside an older version, the report of many errors, and a large contact sheet.

    make bench ARGS="intake"                  # all of it: about five minutes on two idle cores
    python -m bench.intake --rows 10000       # fewer rows

An older version is taken from the history; its command is the same. Each runs three times, in turns, and the
best of each counts: whatever else the machine does only makes a run longer.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from bench.command_usage import CommandUsage, run_command
from bench.contact_sheet import contact_sheet_rows
from bench.table import Row
from tests.support.services import postgres_binaries, postgres_server

ROWS = 100_000
POSTGRES_ROWS = 20_000
BAD_ROWS = 10_000
BEFORE = "cec0c5e"
"""The last commit of version 0.1: batches were read by a reader of their own, without checks across rows."""
REPEATS = 3
_SCREEN = 24
"""Lines of a terminal."""
_COLORS, _PLACES = ("red", "blue", "green"), ("on marble", "on oak", "in a studio")
_RUN = "from jobs.cli.main import main; main()"
_HERE = Path(__file__).parents[1]


def write_feed(path: Path, rows: int, bad: int = 0) -> None:
    """A product feed; the last `bad` rows have steps that are no number."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["custom_id", "product", "color", "place", "seed", "steps"])
        for number in range(rows):
            steps = f"{number}x" if number >= rows - bad else "20"
            color, place = _COLORS[number % 3], _PLACES[number // 3 % 3]
            table.writerow([f"SKU-{number:06}", "vase", color, place, number, steps])


def submit(feed: Path, code: Path = _HERE, database_url: str | None = None) -> CommandUsage:
    """`chorale submit` of a checkout into a fresh database: SQLite, unless one is given."""
    template = ("--template", "a {color} {product} {place}", "--size", "512x512")
    command = [sys.executable, "-c", _RUN, "submit", str(feed), *template, "--queue", "bench"]
    with tempfile.TemporaryDirectory() as home:
        environment = {name: text for name, text in os.environ.items() if not name.startswith("CHORALE_")}
        environment |= {"XDG_DATA_HOME": home, "PYTHONPATH": str(code)}
        if database_url is not None:
            environment["CHORALE_DATABASE_URL"] = database_url
        return run_command(command, cwd=code, environment=environment)


def rows(count: int = ROWS) -> list[Row]:
    """The figures of this version, and of the one before where the history has it."""
    with tempfile.TemporaryDirectory(prefix="intake-") as name:
        folder = Path(name)
        good, bad = folder / "good.csv", folder / "bad.csv"
        write_feed(good, count)
        write_feed(bad, BAD_ROWS, BAD_ROWS)
        return [
            *_intake_rows(good, count, _older_version(folder / "before")),
            *_postgres_rows(folder, min(count, POSTGRES_ROWS)),
            *_report_rows(bad),
            *contact_sheet_rows(folder),
        ]


def _intake_rows(good: Path, count: int, before: Path | None) -> Iterator[Row]:
    ours, theirs = [], []
    # In turns, so that whatever else the machine does slows both.
    for _ in range(REPEATS):
        if before is not None:
            theirs.append(_done(submit(good, before)))
        ours.append(_done(submit(good)))
    what = f"{count:,} rows of CSV, queued on SQLite"
    seconds = _best_s(ours)
    yield Row(f"{what}: processor s, best of {REPEATS}", seconds, "")
    if theirs:
        yield Row(f"the same, version 0.1 ({BEFORE}): processor s, best of {REPEATS}", _best_s(theirs), "")
        yield Row("the same, times as long as version 0.1", seconds / _best_s(theirs), "<= 1.2")
    yield Row(f"{what}: s by the clock, best of {REPEATS}", min(each.seconds for each in ours), "")
    yield Row(f"{what}: MiB at most", max(each.peak_bytes for each in ours) / 2**20, "<= 300")


def _postgres_rows(folder: Path, count: int) -> Iterator[Row]:
    if postgres_binaries() is None:
        return
    good = folder / "postgres.csv"
    write_feed(good, count)
    with postgres_server(folder) as url:
        usage = _done(submit(good, database_url=url))
    what = f"{count:,} rows of CSV, queued on PostgreSQL"
    yield Row(f"{what}: processor s, without the server's", usage.processor_s, "")
    yield Row(f"{what}: s by the clock", usage.seconds, "")
    yield Row(f"{what}: MiB at most", usage.peak_bytes / 2**20, "<= 300")


def _report_rows(bad: Path) -> Iterator[Row]:
    usage = submit(bad)
    assert usage.status == 2, usage.errors[-3:]
    width = max(len(line) for line in usage.errors)
    what = f"report of {BAD_ROWS:,} bad rows"
    yield Row(f"{what}: lines", len(usage.errors), f"<= {_SCREEN}")
    yield Row(f"{what}: characters of the longest line", width, "")
    yield Row(f"{what}: processor s", usage.processor_s, "")


def _older_version(folder: Path) -> Path | None:
    """A checkout of the version before; None without a history that reaches so far."""
    packed = subprocess.run(["git", "archive", BEFORE], cwd=_HERE, capture_output=True)
    if packed.returncode != 0:
        return None
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _done(usage: CommandUsage) -> CommandUsage:
    assert usage.status == 0, usage.errors[-3:]
    return usage


def _best_s(usages: list[CommandUsage]) -> float:
    return min(each.processor_s for each in usages)


@click.command()
@click.option("--rows", "count", type=int, default=ROWS, show_default=True)
def main(count: int) -> None:
    """Print the figures."""
    for row in rows(count):
        click.echo(f"{row.name}: {row.value:.3f}  {row.wanted} {row.holds()}")


if __name__ == "__main__":
    main()
