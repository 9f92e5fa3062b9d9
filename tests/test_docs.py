"""Every command has an example in its help, and the README names real commands and flags."""

import re
import shlex
from pathlib import Path

import click
import pytest

from jobs.cli.main import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
MAKEFILE = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_shows_an_example(name: str) -> None:
    command = cli.commands[name]
    assert command.help
    assert command.epilog and f"chorale {name}" in command.epilog
    assert all(param.help for param in command.params if isinstance(param, click.Option))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_the_readme_names_every_command(name: str) -> None:
    assert f"chorale {name}" in README


def commands_of_the_readme() -> list[str]:
    return [line for line in README.splitlines() if line.startswith("chorale ")]


@pytest.mark.parametrize("line", commands_of_the_readme())
def test_the_readmes_commands_parse(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = cli.commands[words[0]]
    command.make_context(words[0], words[1:])


def test_the_readmes_make_targets_exist() -> None:
    for target in set(re.findall(r"`make (\w+)", README)):
        assert f"\n{target}:" in MAKEFILE
