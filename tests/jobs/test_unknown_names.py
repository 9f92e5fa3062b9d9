"""A batch, queue, job or node that the farm does not know is never taken for an empty one."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from jobs.cli.main import cli, main

_CREATES = {("submit", "queue"), ("token", "name")}
"""Naming a new one is how it is made."""
_SKIPPED = {("schema", "batch"), ("agent", "name")}
"""A flag of another meaning."""
_NAMES = {"batch": "--batch", "queue": "--queue", "job": "", "ids": "", "node": "", "name": ""}
_MORE = {"batches": ["--results", "out"], "priority": ["50"], "export": ["out/{custom_id}.jpg"]}


def _cases() -> list[tuple[str, list[str]]]:
    found = []
    for names in cli.sections.values():
        for name in names:
            command: click.Command = cli.commands[name]
            for parameter in command.params:
                key = (name, str(parameter.name))
                if parameter.name in _NAMES and key not in _CREATES | _SKIPPED:
                    flag = [] if isinstance(parameter, click.Argument) else [f"--{parameter.name}"]
                    found.append((name, [*flag, "beefbeefbeef", *_MORE.get(name, [])]))
    found += [("queues", ["beefbeefbeef", each]) for each in ("--pause", "--unpause", "--delete")]
    return found


CASES = _cases()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("CHORALE_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    errors = capsys.readouterr().err
    assert ended.value.code == 2, errors
    assert errors.count("\n") == 1
    return errors


def test_every_command_that_takes_a_name_is_tried() -> None:
    tried = {name for name, _ in CASES}
    assert {"list", "show", "watch", "wait", "logs", "cancel", "pause", "resume", "retry"} <= tried
    assert {"priority", "batches", "queues", "report", "drain", "undrain"} <= tried


@pytest.mark.parametrize(("command", "arguments"), CASES, ids=lambda value: str(value))
def test_an_unknown_name_is_refused(
    home: Path, command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "unknown" in refused(capsys, command, *arguments)
    assert not (home / "out").exists()


def test_ids_and_a_batch_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert "not both" in refused(capsys, "cancel", "3fa9", "--batch", "8c1f00aa3b52")
    assert "--batch or --queue" in refused(capsys, "cancel")


def test_a_queue_is_made_by_its_rules_and_says_its_zone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["queues", "night", "--window", "mon-fri 22:00-07:00"])
    shown = capsys.readouterr()
    assert ended.value.code == 0
    assert "mon-fri 22:00-07:00" in shown.out and "no zone is given, so it is this machine's" in shown.err
    with pytest.raises(SystemExit):
        main(["queues", "night", "--window", "mon-fri 22:00-07:00 Europe/Paris"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("out", ["x.png", "out/vase.JPG", "s3://bucket/vase.tif"])
def test_an_image_is_no_file(home: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    errors = refused(capsys, "render", "a vase", "--out", out)
    folder = out.rpartition(".")[0]
    assert f"use --out {folder}, then: chorale export {folder} {Path(out).name}" in errors
    assert not list(home.iterdir())


@pytest.mark.parametrize("verb", ["render", "plan", "submit"])
def test_a_file_is_no_prompt(home: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "feed.ods").write_text("x")
    assert "is a file of another kind" in refused(capsys, verb, "feed.ods")
    assert "cannot be read" in refused(capsys, "submit", "none.xlsx")
    assert "give it to chorale submit" in refused(capsys, "render", "none.xlsx")
