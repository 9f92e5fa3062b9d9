"""Help of the command line: commands under headings, examples that can be copied."""

from __future__ import annotations

import re
from typing import Any

import click

WIDTH = 100
"""Columns of the help, where the terminal has as many."""


class CommandGroup(click.Group):
    """A group whose commands stand under headings. Without arguments it prints its help and exits with 0."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sections: dict[str, list[str]] = {}

    def add_section(self, heading: str, *commands: click.Command) -> None:
        """Add commands under a heading, in this order."""
        for command in commands:
            self.add_command(command)
        self.sections[heading] = [command.name for command in commands if command.name]

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
