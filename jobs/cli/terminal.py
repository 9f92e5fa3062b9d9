"""Printing: every text that a user or a file supplied goes through `printable` on its way to a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.formatting import printable, printable_json

_LONGEST = 100_000
"""Columns of a line of a table that is not printed on a terminal."""


def plain(value: object) -> Text:
    """A value as text for rich: no markup, no emoji codes, no control characters."""
    return Text(printable(value))


def print_line(text: str, *, error: bool = False) -> None:
    """Print one line, to stderr when `error`."""
    click.echo(printable(text), err=error)


def print_lines(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Print text of several lines, whose line breaks and tabs stay, to stderr when `error`."""
    click.echo(printable(text, keep="\n\t") + end, nl=False, err=error)


def print_json(document: Any) -> None:
    """Print one line of JSON; what a terminal would interpret is escaped."""
    click.echo(printable_json(json.dumps(document, ensure_ascii=False)))


def new_table(columns: Sequence[str], title: str | None = None) -> Table:
    """A table without borders, whose cells fold instead of being cut off."""
    heading = None if title is None else plain(title)
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table, whose cells may be colored (`plain`, then `Text.stylize`); where stdout is no terminal
    its lines are as long as they need to be."""
    table = new_table(columns, title)
    for row in rows:
        table.add_row(*(value if isinstance(value, Text) else plain(value) for value in row))
    console = Console()
    if not console.is_terminal:
        console.width = console.measure(table, options=console.options.update(max_width=_LONGEST)).maximum
    console.print(table)
