"""A prompt is data: it is printed as it is, and nothing in it is interpreted by rich or by the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jobs.cli.main import cli
from jobs.cli.terminal import plain
from jobs.cli.watch import _display, _line
from jobs.formatting import counts_by_state, plural, printable, printable_json, size
from render.spec.prompt_text import clean

MARKUP = "a sign [/b] that says [red]open[/red] :smile: [link=http://x]here"
ESCAPES = "a \x1b[31mred\x1b[0m vase\x07 \x9b2J \u202egnp.exe\u2066 \x7f"
JOINED = "café 花瓶 می‌خواهم 👩‍👧"
"""Accents, ideographs, a zero-width non-joiner and a joined emoji: text that has to stay as it is."""
_UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("CHORALE_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)


def chorale(*words: str) -> str:
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("prompt", [MARKUP, ESCAPES, JOINED, "two\nlines\tand a tab"])
def test_a_prompt_is_shown_as_text_everywhere(prompt: str) -> None:
    receipt = json.loads(chorale("submit", prompt, "--size", "128x128", "--json"))
    listed = chorale("list", "--json")
    (job,) = json.loads(listed)["jobs"]
    assert job["prompt"] == clean(prompt) and not _UNSAFE.search(listed)
    for words in (("list",), ("batches",), ("report",), ("show", job["id"])):
        shown = chorale(*words)
        assert printable(clean(prompt)).strip() in shown and not _UNSAFE.search(shown)
    chorale("cancel", "--batch", receipt["batch"])
    assert not _UNSAFE.search(chorale("watch", "--until-done"))


def test_watch_draws_a_prompt_as_text() -> None:
    row = {"id": "3fa9", "state": "rendering", "progress": 0.5, "fence": 1, "created": 0.0}
    running = [row | {"prompt": prompt, "seconds_left": 90.0} for prompt in (MARKUP, ESCAPES)]
    console = Console(width=200, force_terminal=False)
    with console.capture() as drawn:
        console.print(_display({"rendering": 2}, running))
    assert MARKUP[:60] in drawn.get() and not _UNSAFE.search(drawn.get())
    assert _line({"rendering": 2}, running) == "2 rendering: 3fa9 rendering 50 %, 3fa9 rendering 50 %"


def test_printable_keeps_text_and_shows_what_it_replaces() -> None:
    assert printable(JOINED) == JOINED and printable(MARKUP) == MARKUP
    assert printable("a\x1b[2J\u202eb\nc") == "a\\x1b[2J\\u202eb c"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert plain("[b]x[/b]").plain == "[b]x[/b]"


@given(st.text(st.characters(codec=None)))
def test_printable_json_decodes_to_the_same(text: str) -> None:
    encoded = printable_json(json.dumps({"prompt": text}, ensure_ascii=False))
    assert json.loads(encoded) == json.loads(json.dumps({"prompt": text}))
    assert not _UNSAFE.search(encoded)


def test_counts_and_sizes() -> None:
    assert (plural(1, "image"), plural(2, "image"), plural(0, "retry", "retries")) == (
        "1 image",
        "2 images",
        "0 retries",
    )
    assert plural(12_345, "image") == "12,345 images"
    assert (size(512), size(1536), size(3 * 2**30)) == ("512 Bytes", "1.5 KiB", "3.0 GiB")
    assert counts_by_state({"queued": 2, "done": 0, "failed": 1}) == "2 queued, 1 failed"
