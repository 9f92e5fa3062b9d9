"""What the verbs of the farm share: where it is, who asks, and how a table or a line of JSON is printed."""

from __future__ import annotations

import functools
import getpass
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from infra.settings import read_settings
from jobs.farm import open_farm

Command = Callable[..., Any]


def farm_options(command: Command) -> Command:
    """Add --database-url and --json, and hand the command an open `farm`."""

    @click.option("--database-url", default=None, help="The farm's database. [CHORALE_DATABASE_URL]")
    @click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
    @functools.wraps(command)
    def opened(*arguments: Any, database_url: str | None, **options: Any) -> Any:
        with open_farm(read_settings({"database_url": database_url})) as farm:
            return command(*arguments, farm=farm, **options)

    return opened


def whoami() -> str:
    """The owner of what is submitted, unless --owner says otherwise."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    Console().print(table)


def ago(moment: float) -> str:
    """How long a moment of the database's clock is past, roughly."""
    return duration(max(0.0, time.time() - moment))


def duration(seconds: float) -> str:
    """`3 min`, `2 h`, `5 d`."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def counted(counts: Mapping[str, int]) -> str:
    """`3 queued, 1 done`, or `none`."""
    return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count) or "none"
