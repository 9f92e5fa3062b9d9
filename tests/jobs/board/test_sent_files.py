"""Names of files that come with a batch: which file each is, and how problems tell them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.board.sent_files import as_named
from jobs.cli.remote_files import FilesToSend
from jobs.client import Farm
from jobs.intake.named_files import MOST_FILES
from jobs.intake.options import IntakeOptions
from jobs.intake.raw_rows import Reading
from render.errors import BadInput


def test_texts_that_only_look_like_sent_files_stay() -> None:
    names = {"one.png": "", "two.png": ""}
    place = "/tmp/chorale-sent-ab12/batch-cd34"
    assert as_named(f"init: '{place}/1/two.png' is no image", names) == "init: 'two.png' is no image"
    for number in ("2", "999999", "9" * 5000, "¹", "٣"):
        text = f"prompt: '{place}/{number}/x.png' is odd"
        assert as_named(text, names) == text


def test_one_name_cannot_be_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag's is beside the command, a cell's beside the batch file."""
    monkeypatch.chdir(tmp_path)
    feed = tmp_path / "feeds" / "feed.csv"
    feed.parent.mkdir()
    feed.write_text("prompt,init\na vase,a.png\na mug,a.png\n")
    for folder in (tmp_path, feed.parent):
        (folder / "a.png").write_bytes(str(folder).encode())
    named = FilesToSend()
    named.add_values({"init": "a.png"})
    with pytest.raises(BadInput, match=r"^init: 'a\.png' names two files, a\.png and .*; rename one"):
        named.add_rows(Reading(path=feed, encoding=None, sheet=None), IntakeOptions())
    same = FilesToSend()
    same.add_values({"init": "a.png"})
    same.add_values({"mask": "a.png"})
    same.add_rows(Reading(path=_beside(tmp_path), encoding=None, sheet=None), IntakeOptions())
    assert list(same.paths) == ["a.png"]


def _beside(folder: Path) -> Path:
    path = folder / "feed.csv"
    path.write_text("prompt,init\na vase,a.png\n")
    return path


def test_too_many_files_are_refused_before_any_is_sent(tmp_path: Path) -> None:
    named = FilesToSend({str(number): tmp_path / str(number) for number in range(MOST_FILES + 1)})
    with Farm("http://127.0.0.1:9") as farm, pytest.raises(BadInput, match="files: 5001 are too many"):
        named.send(farm)
