"""The checks of a node, and what becomes of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from infra.database import Database
from infra.errors import StoreDenied
from infra.store.local import LocalStore
from jobs.node import health, health_checks
from jobs.node.health import NodeHealth
from jobs.node.health_checks import (
    INODES,
    StoreCheck,
    check_clock,
    check_gpus,
    check_home,
    check_memory,
    check_temporary,
)
from tests.support.cli import wait_until


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 80 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    # Directly in /tmp: pytest's own folder may be too long a path for sockets.
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


def test_a_full_home_is_told_and_a_missing_one_made_again(small_disk: Path) -> None:
    home = small_disk / "chorale" / "logs"
    assert check_home(home) is None and home.is_dir()
    shutil.rmtree(small_disk / "chorale")
    assert check_home(home) is None and home.is_dir()
    (small_disk / "ballast").write_bytes(bytes(30 * 2**20))
    assert "has 50.0 MiB free; make room for at least 64.0 MiB" in (check_home(home) or "")
    (small_disk / "ballast").unlink()
    assert check_home(home) is None and not list(home.iterdir())


def test_a_disk_without_any_room_is_told(small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb") as file, pytest.raises(OSError, match="No space"):
        file.write(bytes(90 * 2**20))
    assert "free; make room" in (check_home(small_disk) or "") or "No space" in (check_home(small_disk) or "")


def touch(folder: Path, numbers: Iterable[int]) -> None:
    for number in numbers:
        (folder / str(number)).touch()


def test_a_disk_without_inodes_is_told_before_and_when_none_is_left(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = small_disk / "chorale" / "logs"
    remount = ["mount", "-o", f"remount,size=80m,nr_inodes={INODES + 20}", str(small_disk)]
    subprocess.run(remount, check=True)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert check_home(home) is None
    touch(small_disk, range(20))
    told = re.compile(r"(home|temporary): .* has \d+ inodes free; delete files on its disk, it needs \d+")
    assert told.fullmatch(check_home(home) or "") and told.fullmatch(check_temporary() or "")
    with pytest.raises(OSError, match="No space"):
        touch(small_disk, range(20, 200))
    assert told.fullmatch(check_home(home) or "") and told.fullmatch(check_temporary() or "")
    shutil.rmtree(small_disk / "chorale")
    touch(small_disk, range(300, 302))
    assert told.fullmatch(check_home(home) or ""), "where it has to be made again, too"


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written (Not a directory)" in (check_home(tmp_path / "file" / "logs") or "")


def test_a_temporary_folder_is_made_again_and_must_have_a_short_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Directly in /tmp: pytest's own folder may be too long a path itself.
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short) / "t"
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert check_temporary() is None and folder.is_dir()
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert "too long for a unix socket; set TMPDIR to a shorter one" in (check_temporary() or "")
    assert not list(long.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no" / "such"))
    assert "cannot be written" in (check_temporary() or "")


def test_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_checks, "_CGROUP", tmp_path)
    assert check_memory() is None, "a machine without cgroups"
    for name, value in (
        ("max", 2**30),
        ("current", 2**30 - 2**26),
        ("stat", f"anon 5\ninactive_file {2**29}"),
    ):
        (tmp_path / f"memory.{name}").write_text(f"{value}\n")
    assert check_memory() is None, "pages of files can be dropped"
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    assert check_memory() == "memory: 64.0 MiB available; a rank needs at least 256.0 MiB to start"


@pytest.mark.parametrize(("ahead", "text"), [(1800.0, "30 min ahead of"), (-120.0, "2 min behind")])
def test_a_clock_that_differs_from_the_databases_is_told(database: Database, ahead: float, text: str) -> None:
    assert check_clock(database) is None
    assert f"clock: {text} the database's" in (check_clock(database, lambda: time.time() + ahead) or "")


def test_gpus_that_do_not_respond_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_checks, "visible_gpus", lambda: ("one",) * 3)
    assert check_gpus(3) is None
    assert check_gpus(4) == "gpu: 3 of 4 GPUs respond; see nvidia-smi"


def test_a_store_that_was_there_and_is_gone_is_told_and_ours_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    check = StoreCheck(lambda: LocalStore(folder), "chorale-check/n1")
    assert check() is None, "a new store is made"
    assert not list(folder.iterdir()), "it leaves nothing"
    folder.rmdir()
    assert check() == f"store: {folder} is gone; mount it, or make it again"
    folder.mkdir()
    assert check() is None
    own = StoreCheck(lambda: LocalStore(folder), "chorale-check/n1", make_again=True)
    assert own() is None
    folder.rmdir()
    assert own() is None and folder.is_dir()


class Bucket(LocalStore):
    """Not written each time, and refused when `denied`."""

    denied = False
    writes = 0

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        if self.denied:
            raise StoreDenied("no permission")
        self.writes += 1
        super().put(key, data, content_type, immutable)


def test_a_bucket_is_written_now_and_then_and_again_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, now = Bucket(tmp_path), [0.0]
    check = StoreCheck(lambda: bucket, "x", clock=lambda: now[0])
    monkeypatch.setattr(health_checks, "LocalStore", Path)
    assert [check() for _ in range(5)] == [None] * 5
    assert bucket.writes == 1
    now[0], bucket.denied = 1000.0, True
    assert [check(), check()] == ["store: no permission"] * 2
    bucket.denied = False
    assert check() is None and bucket.writes == 2


EVERY = {"home": 0.01, "store": 0.01}


def test_checks_run_in_threads_that_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "RETRY_S", 0.01)
    answer: list[str | Exception | None] = [None]

    def check() -> str | None:
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    node = NodeHealth({"home": check}, EVERY)
    node.start()
    assert node.problems() == []
    answer[0] = OSError(5, "Input/output error")
    (problem,) = wait_until(node.problems)
    assert problem.check == "home" and "Input/output error" in problem.text
    answer[0] = "home: full"
    wait_until(lambda: [each.text for each in node.problems()] == ["home: full"])
    answer[0] = None
    wait_until(lambda: node.problems() == [])


def test_a_look_runs_the_local_checks_anew() -> None:
    answer: list[str | None] = [None]
    node = NodeHealth({"home": lambda: answer[0], "store": lambda: None}, {"home": 1e6, "store": 1e6})
    node.start()
    answer[0] = "home: full"
    assert node.problems() == []
    assert [each.text for each in node.look()] == ["home: full"]
    answer[0] = None
    assert node.look() == []


def test_a_check_that_hangs_stops_nobody_and_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LOOK_S", 0.05)
    gate = threading.Event()

    def hanging() -> str | None:
        gate.wait()
        return None

    node = NodeHealth({"home": lambda: None, "store": hanging}, EVERY)
    node.start()
    (problem,) = node.problems()
    assert problem.check == "store" and "has not ended" in problem.text
    gate.set()
    wait_until(lambda: node.problems() == [])


def test_a_start_that_failed_takes_the_node_out_for_a_while() -> None:
    now = [0.0]
    node = NodeHealth({}, {}, clock=lambda: now[0])
    node.report_start_failure("start: no supervisor can be started")
    assert [each.check for each in node.problems()] == ["start"]
    now[0] = health.START_PAUSE_S + 1
    assert node.problems() == []
