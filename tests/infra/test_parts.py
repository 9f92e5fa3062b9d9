"""Files that are being written: what a killed writer leaves goes, what another one writes now does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.store.local import LocalStore
from infra.store.parts import ABANDONED_S, abandoned_parts, part_of, remove_abandoned_parts

_WRITER = """
import os, sys, time
from pathlib import Path
from infra.store.local import LocalStore
def stuck(descriptor):
    print("written", flush=True)
    time.sleep(600)
os.fsync = stuck
LocalStore(Path(sys.argv[1])).put("image_files/0/0_0.png", b"x" * 1000, "image/png")
"""


def _age(path: Path, seconds: float) -> None:
    moment = path.stat().st_mtime - seconds
    os.utime(path, (moment, moment))


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(".part-*"))


def test_a_killed_writer_leaves_a_part_which_goes_when_it_is_old(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "written\n"
        (part,) = _parts(tmp_path)
        assert list(LocalStore(tmp_path).entries()) == [], "no listing has it"
        remove_abandoned_parts(tmp_path)
        assert part.exists(), "its writer is at it"
        writer.send_signal(signal.SIGKILL)
    remove_abandoned_parts(tmp_path)
    assert part.exists(), "nobody can tell yet that its writer is gone"
    _age(part, ABANDONED_S + 60)
    (found,) = abandoned_parts(tmp_path)
    assert (found.path, found.bytes) == (part, 1000)
    remove_abandoned_parts(tmp_path)
    assert not part.exists()


def test_only_files_of_such_a_name_go(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (".part-x", ".part-" + "0" * 31, "a.part-" + "0" * 32, "tile.png")]
    others.append(tmp_path / (".part-" + "0" * 32 + ".tif"))
    folder = part_of(tmp_path / "x")
    folder.mkdir()
    for path in others:
        path.write_bytes(b"x")
    for path in (*others, folder):
        _age(path, 10 * ABANDONED_S)
    part = part_of(tmp_path / "tile.png")
    part.write_bytes(b"x")
    _age(part, 10 * ABANDONED_S)
    remove_abandoned_parts(tmp_path)
    assert not part.exists() and all(path.exists() for path in (*others, folder))
    remove_abandoned_parts(tmp_path / "nowhere")


def test_a_folder_that_is_deleted_before_a_file_is_in_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever deletes the last file of a folder deletes the folder, which another is about to write to."""
    store, opened, tries = LocalStore(tmp_path), Path.open, []

    def open_once_deleted(path: Path, mode: str = "r") -> object:
        tries.append(path)
        if len(tries) == 1:
            path.parent.rmdir()
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", open_once_deleted)
    store.put("work/checkpoint", b"data", "text/plain")
    monkeypatch.undo()
    assert store.get("work/checkpoint") == b"data" and len(tries) == 2


@pytest.mark.parametrize("write", ["put", "put_if_absent"])
def test_a_part_that_another_process_removes_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """Its clock may be hours ahead."""
    fsync, tries = os.fsync, []

    def removed(descriptor: int) -> None:
        fsync(descriptor)
        tries.append(_parts(tmp_path)[0])
        if len(tries) == 1:
            tries[0].unlink()

    monkeypatch.setattr(os, "fsync", removed)
    getattr(LocalStore(tmp_path), write)("work/checkpoint", b"data", "text/plain")
    assert LocalStore(tmp_path).get("work/checkpoint") == b"data"
    assert len(tries) == 2 and _parts(tmp_path) == []
