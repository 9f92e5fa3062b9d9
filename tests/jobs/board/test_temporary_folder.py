"""What a board does when its temporary folder is cleaned away under it, or is full."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from infra.settings import read_settings
from jobs.board import temporary_folder
from jobs.board.access import Access
from jobs.board.app import make_app
from jobs.board.board import Board
from jobs.board.sent_files import SentFiles
from jobs.board.uploads import Uploads
from jobs.farm import open_farm
from tests.support.asgi import ask

DATA = b"some bytes"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(temporary_folder.tempfile, "tempdir", str(folder))
    return folder


def clean(folder: Path) -> None:
    """As machines do with what is old."""
    for each in folder.iterdir():
        shutil.rmtree(each)


async def _body(data: bytes) -> AsyncIterator[bytes]:
    yield data


def test_files_are_sent_again_after_the_folder_was_cleaned(temporary: Path) -> None:
    sent = SentFiles()
    for _ in range(2):
        assert sent.size(DIGEST) is None
        assert asyncio.run(sent.take(DIGEST, _body(DATA), 1000)) == len(DATA)
        with sent.named(json.dumps({"a.png": DIGEST})) as names:
            assert Path(names["a.png"]).read_bytes() == DATA
        assert sent.size(DIGEST) == len(DATA)
        clean(temporary)


def test_a_form_s_file_is_chosen_again_after_the_folder_was_cleaned(temporary: Path) -> None:
    uploads = Uploads()
    for _ in range(2):
        kept = uploads.keep("feed.csv", io.BytesIO(DATA))
        assert uploads.get(kept.token) == kept and kept.path.read_bytes() == DATA
        clean(temporary)
        assert uploads.get(kept.token) is None


class FullDisk(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_does_not_fit_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        Uploads().keep("feed.csv", FullDisk(DATA))
    assert list(temporary.rglob("batch*")) == []


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with open_farm(read_settings({})) as farm:
        yield Board(farm, Access())


@pytest.mark.parametrize(
    ("number", "status", "part"),
    [(errno.ENOSPC, 507, "has no space for it"), (errno.EROFS, 503, "Read-only file system")],
)
def test_a_disk_that_takes_nothing_is_told_in_one_sentence(
    board: Board, monkeypatch: pytest.MonkeyPatch, number: int, status: int, part: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, "Read-only file system" if number == errno.EROFS else "No space left on device")

    monkeypatch.setattr(temporary_folder.TemporaryFolder, "path", fails)
    answer = ask(make_app(board), f"/api/v1/files/{DIGEST}", "PUT", DATA)
    assert (answer.status, set(answer.json)) == (status, {"error"})
    assert part in answer.json["error"] and "administrator" in answer.json["error"]
