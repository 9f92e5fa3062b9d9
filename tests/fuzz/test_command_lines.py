"""Command lines of all commands with odd values: a documented exit code, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import click
import pytest

from jobs.cli.main import cli, main
from tests.fuzz import values
from tests.fuzz.campaign import Result, run

CODES = {0, 2, 3, 4, 5, 6}
_RUNS_ON = {"up", "agent", "serve", "doctor", "simulate", "wait", "watch"}
"""Commands that go on until they are stopped, or measure: only with an argument that ends them."""
_PATHS = (
    ".",
    "nowhere",
    "folder",
    "spec.yaml",
    "rows.csv",
    "a/b",
    "/dev/null",
    "/proc/self/mem",
    "image",
    "image.png",
)


def _commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = tuple(_commands(cli))


def vector(random: Random) -> list[str]:
    """A command with some of its options and arguments."""
    path, command = random.choice(COMMANDS)
    found = list(path)
    options = [each for each in command.params if isinstance(each, click.Option)]
    for option in random.sample(options, min(len(options), random.randrange(4))):
        found.append(random.choice(option.opts))
        if not option.is_flag and not option.count:
            found.append(_word(random, option))
    for argument in command.params:
        if isinstance(argument, click.Argument) and random.random() < 0.8:
            found.append(_word(random, argument))
    if random.random() < 0.1:
        found.insert(random.randrange(len(found) + 1), values.text(random))
    if path[0] in _RUNS_ON:
        found.append("--no-such-option" if random.random() < 0.5 else "--help")
    if path[0] in ("render", "upscale"):
        found.append("--dry-run")
    return [word.replace("\0", "") for word in found]


def _word(random: Random, param: click.Parameter) -> str:
    roll = random.random()
    if roll < 0.3 and param.name in values.FIELDS:
        return str(values.good(random, param.name))
    if roll < 0.45:
        return random.choice(_PATHS)
    if roll < 0.6:
        return random.choice(
            ("0", "1", "16", "256x256", "auto", "none", "builtin", "a red vase", "12h", "owner=1")
        )
    if roll < 0.7:
        try:
            return str(random.choice(values.NUMBERS))
        except ValueError:
            return "9" * 5000
    # Bytes of an argument that are no UTF-8 arrive as halves of surrogate pairs.
    return values.text(random) if roll < 0.95 else "caf\udce9"


def judge(arguments: list[str]) -> str:
    """The exit code, in words."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
    out.flush()
    err.flush()
    text = out.buffer.getvalue().decode() + err.buffer.getvalue().decode()
    assert code in CODES, (code, text[-500:])
    assert "Traceback" not in text, text[-1500:]
    if code == 2:
        assert err.buffer.getvalue().startswith(b"chorale: "), text[-500:]
    return f"exit code {code}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and a working folder with a few files."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    work = tmp_path / "work"
    (work / "folder").mkdir(parents=True)
    (work / "image").mkdir()
    (work / "image" / "manifest.json").write_text(json.dumps({"schema": 1, "tiles": {}}))
    (work / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (work / "spec.yaml").write_text("prompt: a vase\n")
    (work / "rows.csv").write_text("prompt,seed\na vase,1\na cup,x\n")
    monkeypatch.chdir(work)
    return work


def campaign(cases: int) -> Result:
    return run("command lines", cases, vector, judge)


def test_short(place: Path) -> None:
    campaign(60).check()


@pytest.mark.slow
def test_long(place: Path) -> None:
    campaign(2000).check()
