"""Intake of a large batch: seconds of a processor and memory, and the length of a report of many errors.

    python -m bench.intake            # 100,000 rows; --rows N for fewer, --code FOLDER for another version

The command is the same for every version since 0.2.0, so `--code` with a checkout of an older one gives the
figures to compare with. Processor seconds, since the machine may do other things beside.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from bench.table import Row

ROWS = 100_000
BAD_ROWS = 10_000
_COLORS, _PLACES = ("red", "blue", "green"), ("on marble", "on oak", "in a studio")
_RUN = "from jobs.cli.main import main; main()"


def write_feed(path: Path, rows: int, bad: int = 0) -> None:
    """A product feed; the last `bad` rows have steps that are no number."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["custom_id", "product", "color", "place", "seed", "steps"])
        for number in range(rows):
            steps = f"{number}x" if number >= rows - bad else "20"
            color, place = _COLORS[number % 3], _PLACES[number // 3 % 3]
            table.writerow([f"SKU-{number:06}", "vase", color, place, number, steps])


def submit(feed: Path, code: Path) -> tuple[float, float, list[str]]:
    """(processor seconds, MiB at most, lines on stderr) of `chorale submit` into a fresh database."""
    template = ("--template", "a {color} {product} {place}", "--size", "512x512")
    command = [sys.executable, "-c", _RUN, "submit", str(feed), *template, "--queue", "bench"]
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"XDG_DATA_HOME": home}
        environment.pop("CHORALE_DATABASE_URL", None)
        process = subprocess.Popen(
            command, cwd=code, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        errors = process.stderr.read().splitlines()
        process.stderr.close()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, errors


def rows(count: int = ROWS, code: Path | None = None) -> list[Row]:
    """The figures of one version."""
    code = code or Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        good, bad = Path(folder) / "good.csv", Path(folder) / "bad.csv"
        write_feed(good, count)
        write_feed(bad, BAD_ROWS, BAD_ROWS)
        seconds, memory, _ = submit(good, code)
        _, _, lines = submit(bad, code)
    return [
        Row(f"{count:,} rows of CSV, queued, processor s", seconds, ""),
        Row(f"{count:,} rows of CSV, queued, MiB at most", memory, "<= 300"),
        Row(f"report of {BAD_ROWS:,} bad rows, lines", len(lines), "<= 24"),
    ]


@click.command()
@click.option("--rows", "count", type=int, default=ROWS, show_default=True)
@click.option("--code", type=click.Path(exists=True, file_okay=False, path_type=Path), default=None)
def main(count: int, code: Path | None) -> None:
    """Print the figures."""
    for row in rows(count, code):
        click.echo(f"{row.name}: {row.value:.1f}  {row.wanted} {row.holds()}")


if __name__ == "__main__":
    main()
