"""Help of the command line: commands under headings, examples that can be copied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any

import click

WIDTH = 100
"""Columns of the help, where the terminal has as many."""


class LazyCommands(MutableMapping[str, click.Command]):
    """Commands by name, some of them as `module:attribute`, which is imported when the command is looked at.

    One command's imports take a tenth of a second to two; those of all take several times as long.
    """

    def __init__(self) -> None:
        self._commands: dict[str, click.Command | str] = {}

    def add_lazily(self, name: str, place: str) -> None:
        """Add a command that is defined at `place`, a `module:attribute`."""
        self._commands[name] = place

    def __getitem__(self, name: str) -> click.Command:
        command = self._commands[name]
        if isinstance(command, str):
            module, _, attribute = command.partition(":")
            command = self._commands[name] = getattr(import_module(module), attribute)
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)


class CommandGroup(click.Group):
    """A group whose commands stand under headings. Without arguments it prints its help and exits with 0."""

    def __init__(self, **options: Any) -> None:
        self._lazy = LazyCommands()
        super().__init__(commands=self._lazy, **options)
        self.sections: dict[str, list[str]] = {}

    def add_section(self, heading: str, places: Mapping[str, str]) -> None:
        """Add commands under a heading, in this order: name -> `module:attribute`."""
        for name, place in places.items():
            self._lazy.add_lazily(name, place)
        self.sections[heading] = list(places)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ([] if ctx.resilient_parsing else ["--help"]))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.commands)
        for heading, names in (self.sections or {"Commands": sorted(self.commands)}).items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), summary(self.commands[name])) for name in names])


def summary(command: click.Command) -> str:
    """The first sentence of a command's help, without its period."""
    return command.get_short_help_str(limit=1000)


def examples(*lines: str) -> str:
    """An epilog that shows one command per line; long ones continue on a next line, as a shell takes them."""
    heading = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", heading, *(f"  {_continued(line)}" for line in lines)])


def examples_of(command: click.Command) -> list[str]:
    """The commands that an epilog made by `examples` shows, each in one line."""
    joined = re.sub(r" \\\n\s*", " ", command.epilog or "")
    return [line.strip() for line in joined.splitlines() if line.strip().startswith("chorale ")]


def _continued(line: str) -> str:
    """Break a command before its flags where it is longer than a line of help."""
    first, *flags = re.split(r" (?=--)", line)
    lines = [first]
    for flag in flags:
        if len(lines[-1]) + len(flag) + 1 > WIDTH - 6:
            lines.append(f"    {flag}")
        else:
            lines[-1] += f" {flag}"
    return " \\\n  ".join(lines)
