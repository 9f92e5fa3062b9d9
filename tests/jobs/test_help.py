"""The help of the command line: grouped, complete in every line, with examples; and how usage errors end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from jobs.cli.help import WIDTH, CommandGroup, examples_of, summary
from jobs.cli.main import cli, main


def commands(
    group: CommandGroup, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and subcommand by its words."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, CommandGroup):
            yield from commands(command, (*path, name))


ALL = dict(commands(cli))


def help_of(*words: str) -> str:
    result = CliRunner().invoke(cli, [*words, "--help"], catch_exceptions=False, terminal_width=WIDTH)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("words", [(), ("store",), ("k8s",)])
def test_a_group_alone_prints_its_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    shown = capsys.readouterr()
    assert ended.value.code == 0 and shown.err == "" and shown.out.startswith("Usage: chorale")


def test_every_command_stands_under_one_heading() -> None:
    names = [name for section in cli.sections.values() for name in section]
    assert sorted(names) == sorted(cli.commands)
    lines = help_of().splitlines()
    for heading, section in cli.sections.items():
        start = lines.index(f"{heading}:")
        for line, name in zip(lines[start + 1 :], section, strict=False):
            assert line.split()[:1] == [name] and line.endswith(summary(cli.commands[name]))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_lines_of_help_fit_and_are_complete(words: tuple[str, ...]) -> None:
    text = help_of(*words)
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "..." not in text.replace("]...", "")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_help_for_everything_and_an_example(words: tuple[str, ...]) -> None:
    command = ALL[words]
    assert command.help
    assert all(each.help for each in command.params if isinstance(each, click.Option))
    shown = examples_of(command)
    assert shown and all(line.startswith(f"chorale {' '.join(words)}") for line in shown)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("wait",), "Give a job or --batch"),
        (("wait", "3fa9", "--batch", "x"), "Give a job or --batch, not both"),
        (("wait", "--batch", "x"), "batch"),
        (("report", "--batch", "x"), "batch"),
        (("report", "--queue", "x"), "queue"),
        (("list", "--batch", "x"), "batch"),
        (("list", "--queue", "x"), "queue"),
        (("watch", "--queue", "x"), "queue"),
        (("pause", "--batch", "x"), "batch"),
        (("cancel", "--queue", "x"), "queue"),
        (("nonsense",), "nonsense"),
    ],
)
def test_bad_arguments_end_with_2_and_one_sentence(
    words: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("CHORALE_DATABASE_URL", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("chorale: ") and sentence in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["render", "verify", "export", "plan", "schema"])
def test_a_command_without_a_farm_imports_no_database_and_no_broker(name: str) -> None:
    program = (
        "import sys; from jobs.cli.main import cli; "
        f"assert cli.commands['{name}'].name == '{name}'; "
        "print([each for each in ('sqlalchemy', 'alembic', 'celery', 'torch') if each in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
