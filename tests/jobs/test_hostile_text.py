"""Text that others supplied reaches terminals, logs and pages as text, whatever column it stands in.

The rows are written past all checks, as an older version or another program may have written them: names of
jobs, nodes, queues, owners and batches, reasons, addresses, models. Every command that reports and every page
is read.
"""

from __future__ import annotations

import ast
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import String, Table, insert

import jobs.cli
from infra.logging import FORMAT_VARIABLE, LEVEL_VARIABLE, configure_logging
from infra.settings import read_settings
from jobs.board.access import Access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.cli.main import cli, main
from jobs.db import tables
from jobs.db.state_machine import STATES
from jobs.farm import Farm, open_farm
from render.errors import BadInput
from tests.support.asgi import ask

HOSTILE = (
    "a[/b][red]x[link=http://x]y :smile: \x1b]0;owned\x07 \x1b[31m \x9b2J \u202egnp\u2066 \rz"
    "{{7*7}}<img src=x>&"
)
SHOWN = "a[/b][red]x[link=http://x]y :smile:"
"""What stands in the output in its place: the same letters, brackets and colons."""
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_STYLES = re.compile("\x1b\\[[0-9;]*m")
"""Colors, which rich itself writes on a terminal."""
_PRINTERS = ("print", "click.echo", "click.secho", "rich.print", "sys.stdout.write", "sys.stderr.write")
_KNOWN = {
    "id": "0{16}",
    "digest": "0{16}",
    "folder": "0{16}",
    "root": None,
    "rendezvous": None,
    "secret": None,
}
_JOBS = [f"{number:016x}" for number in range(1, len(STATES) + 1)]


@dataclass
class Hostile:
    """A farm whose texts are all hostile."""

    farm: Farm
    app: Any


def _values(table: Table, nth: int, **given: Any) -> dict[str, Any]:
    """A row whose texts are hostile as far as their columns are long."""
    found: dict[str, Any] = {}
    for column in table.c:
        if isinstance(column.type, String) and not column.foreign_keys:
            known = _KNOWN.get(column.name, f"{nth} {HOSTILE}")
            text = known.replace("0{16}", f"{nth:016x}") if known else known
            found[column.name] = text and text[: column.type.length or 1000]
    return found | given


def _fill(farm: Farm) -> None:
    spec = {"prompt": HOSTILE, "negative_prompt": HOSTILE, "width": 64, "height": 64, "steps": 2, "seed": 1}
    numbers = {
        "least_ranks": 1,
        "most_ranks": 1,
        "created": 1.0,
        "changed": 1.0,
        "started": 1.0,
        "ended": 2.0,
    }
    queue, node = _values(tables.queues, 1)["name"], _values(tables.nodes, 1)["name"]
    with farm.database.write() as connection:

        def add(table: Table, nth: int, **given: Any) -> None:
            connection.execute(insert(table).values(**_values(table, nth, **given)))

        add(tables.queues, 1, time_window=None, shares={HOSTILE: 2.0})
        add(tables.nodes, 1, slots=1, lease_until=4e9, problems=[{"check": HOSTILE, "text": HOSTILE}])
        add(tables.batches, 1, queue=queue, created=1.0, submitted=1.0)
        for number, state in enumerate(STATES, 1):
            add(tables.jobs, number, spec=spec, state=state, queue=queue, **numbers)
            add(tables.entries, number, batch=f"{1:016x}", row=number, job=f"{number:016x}")
            add(tables.events, number, number=number, time=1.0, job=f"{number:016x}", fence=1)
            add(tables.attempts, number, job=f"{number:016x}", fence=1, created=1.0)
            live = {
                "stage": 0,
                "stages": 1,
                "step": 1,
                "steps": 2,
                "ranks": {"0": {"phases": {"model": 1.0}}},
            }
            add(tables.members, number, attempt=f"{number:016x}", node=node, place=0, slots=[0], live=live)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    logs = tmp_path / "chorale" / "logs"
    logs.mkdir(parents=True)
    (logs / f"{_JOBS[0]}-0001-n1.log").write_text(HOSTILE)
    with open_farm(read_settings({})) as farm:
        _fill(farm)
        yield Hostile(farm, make_app(Board(farm, Access())))


_REPORTS = [
    *(("show", job) for job in _JOBS),
    ("list",), ("batches",), ("queues",), ("nodes",), ("report",), ("report", "--batch", f"{1:016x}"),
    ("estimate",), ("logs", _JOBS[0]), ("simulate",), ("gc", "--dry-run"), ("list", "--owner", HOSTILE),
    ("list", "--queue", HOSTILE), ("show", HOSTILE), ("cancel", HOSTILE), ("drain", HOSTILE), (HOSTILE,),
    ("plan", HOSTILE, "--sampler", HOSTILE), ("verify", HOSTILE), ("export", HOSTILE, HOSTILE),
    ("submit", HOSTILE, "--model", HOSTILE),
]  # fmt: skip


@pytest.mark.parametrize("colors", [False, True])
def test_no_command_prints_what_a_terminal_interprets(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], colors: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "4000")
    if colors:
        # rich takes its output for a terminal then.
        monkeypatch.setenv("FORCE_COLOR", "1")
    shown = 0
    for words in _REPORTS:
        for more in ((), ("--json",)):
            with pytest.raises(SystemExit) as ended:
                main([*words, *more])
            assert ended.value.code in (0, 2, 3, 6), (words, ended.value.code)
            text = _STYLES.sub("", "".join(capsys.readouterr()))
            assert not _UNSAFE.search(text), (words, _UNSAFE.findall(text), text[:500])
            shown += SHOWN in text
    assert shown > len(_REPORTS), "the texts are shown, not dropped"


def test_no_page_holds_what_a_browser_interprets(hostile: Hostile) -> None:
    paths = ["/", "/jobs", "/batches", f"/batches/{1:016x}", "/nodes", "/compare", "/submit", "/nowhere"]
    paths += [f"/jobs/{job}" for job in _JOBS] + [f"/submit?job={_JOBS[0]}", "/jobs?q=%1b%e2%80%ae%3Cimg"]
    paths += [
        "/?notice=%1b%e2%80%ae%3Cimg",
        "/login?next=%1b%e2%80%ae%3Cimg",
        "/jobs?queue=%1b%e2%80%ae%3Cimg",
    ]
    shown = 0
    for path in paths:
        answer = ask(hostile.app, path, headers={"accept": "text/html"})
        assert answer.status in (200, 400, 404), (path, answer.body)
        text = answer.body.decode()
        assert "<img src=x" not in text and "49<" not in text, path
        found = _UNSAFE.search(text.replace("\r", ""))
        assert found is None, (path, text[found.start() - 80 : found.end() + 20])
        shown += SHOWN in text
    assert shown > 12


def test_a_log_record_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    for name in (FORMAT_VARIABLE, LEVEL_VARIABLE):
        monkeypatch.setenv(name, "")
    for form in ("text", "json"):
        stream = io.StringIO()
        configure_logging(form, stream=stream)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("jobs").exception("the node %s", HOSTILE, extra={"node": HOSTILE})
        assert SHOWN in stream.getvalue() and not _UNSAFE.search(stream.getvalue())


def test_a_node_has_a_name_that_prints_and_fits() -> None:
    for option, value in (
        ("--name", "n\x1b[31m"),
        ("--name", "n" * 129),
        ("--name", "a/b"),
        ("--address", "a\nb"),
    ):
        result = CliRunner().invoke(cli, ["agent", option, value])
        assert isinstance(result.exception, BadInput) and result.exception.field == option[2:]


def test_everything_is_printed_by_the_functions_that_escape() -> None:
    """Commands print by `jobs/cli/terminal.py` alone; `k8s` prints YAML, which has escapes of its own."""
    found = []
    for path in sorted(Path(jobs.cli.__path__[0]).glob("*.py")):
        if path.name in ("terminal.py", "k8s.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in _PRINTERS:
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node.func)}")
    assert found == []
