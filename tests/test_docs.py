"""The README names real commands and flags, and generated documents are current."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.main import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_the_readme_names_every_command(name: str) -> None:
    assert f"chorale {name}" in README


def commands_of_the_readme() -> list[str]:
    return [line for line in README.splitlines() if line.startswith("chorale ")]


@pytest.mark.parametrize("line", commands_of_the_readme())
def test_the_readmes_commands_parse(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    command = cli.commands[arguments[0]]
    command.make_context(arguments[0], arguments[1:])


def test_the_readmes_make_targets_exist() -> None:
    for target in set(re.findall(r"`make (\w+)", README)):
        assert f"\n{target}:" in MAKEFILE


def generator() -> Any:
    """The module docs/generate.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(generator().DOCUMENTS))
def test_generated_documents_are_current(name: str) -> None:
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert committed == generator().text_of(name), "run make docs"


def test_the_command_reference_has_every_command_and_flag() -> None:
    text = generator().text_of("CLI.md")
    for heading, names in cli.sections.items():
        assert f"\n## {heading}\n" in text
        for name in names:
            section = text.partition(f"\n### chorale {name}\n")[2].partition("\n### ")[0]
            flags = [flag for param in cli.commands[name].params for flag in param.opts if flag[:2] == "--"]
            assert all(flag in section for flag in flags)
