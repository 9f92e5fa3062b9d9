"""However a render ends, it leaves no process and no half image, and its exit code is the documented one."""

import contextlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from render.denoise.checkpoint import KEY as CHECKPOINT
from tests.support.cli import last_json, processes_with, ranks_with, start, wait_until

LONG = ("render", "a red vase", "--size", "512x512", "--steps", "900", "--strength", "1", "--ranks", "2")


@pytest.fixture
def mark() -> str:
    return f"CHORALE_TEST_{uuid4().hex}"


def begin(mark: str, out: Path, *more: str) -> subprocess.Popen[str]:
    """A long render that has begun to denoise (its folder is marked by then)."""
    process = start(*LONG, "--out", str(out), *more, **{mark: "1"})
    wait_until(lambda: process.poll() is not None or (out / "spec.json").exists(), 120)
    assert process.poll() is None, process.stderr and process.stderr.read()
    return process


def stage_and_step(checkpoint: Path) -> tuple[int, int]:
    data = checkpoint.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    info = json.loads(header["__metadata__"]["chorale"])
    return info["stage"], info["step"]


def check_nothing_left(mark: str, out: Path) -> None:
    wait_until(lambda: not processes_with(mark), 15)
    assert not (out / "manifest.json").exists()


def test_an_interrupt_stops_every_rank(mark: str, tmp_path: Path) -> None:
    process = begin(mark, tmp_path / "image")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "cancelled" in errors
    check_nothing_left(mark, tmp_path / "image")


def test_sigterm_keeps_a_checkpoint_after_the_step(mark: str, tmp_path: Path) -> None:
    kept = tmp_path / "image" / CHECKPOINT
    process = begin(mark, tmp_path / "image", "--checkpoint-every", "0.2")
    wait_until(kept.exists, 120)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    stopped = re.search(r"stopped after step (\d+) of stage (\d+); what is done is kept", errors)
    assert stopped, errors
    assert stage_and_step(kept) == (int(stopped[2]), int(stopped[1]))
    check_nothing_left(mark, tmp_path / "image")


def test_a_bus_error_is_told_as_a_lack_of_shared_memory(mark: str, tmp_path: Path) -> None:
    process = begin(mark, tmp_path / "image")
    pids = wait_until(lambda: ranks_with(mark))
    os.kill(pids[-1], signal.SIGBUS)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert re.search(r"bus error \(SIGBUS\): /dev/shm has \d+ MiB and is full; mount an emptyDir", errors)
    check_nothing_left(mark, tmp_path / "image")


def test_a_render_fails_when_its_ranks_are_killed(mark: str, tmp_path: Path) -> None:
    process = begin(mark, tmp_path / "image", "--checkpoint-every", "0.2")
    wait_until((tmp_path / "image" / CHECKPOINT).exists, 120)

    def killed() -> bool:
        # Whichever dies first may have a successor by the time the other is dead.
        for pid in ranks_with(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return process.poll() is not None

    wait_until(killed, 120)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "broke off" in errors
    check_nothing_left(mark, tmp_path / "image")


def test_a_killed_command_takes_its_ranks_along(mark: str, tmp_path: Path) -> None:
    process = begin(mark, tmp_path / "image")
    process.kill()
    process.communicate(timeout=30)
    check_nothing_left(mark, tmp_path / "image")


def test_a_render_out_of_time_ends(mark: str, tmp_path: Path) -> None:
    process = start(*LONG, "--out", str(tmp_path / "image"), "--timeout", "4", "--json", **{mark: "1"})
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 5
    assert last_json(output)["code"] == 5
    check_nothing_left(mark, tmp_path / "image")


def test_a_full_disk_fails_the_render(mark: str, tmp_path: Path) -> None:
    small = ("render", "a red vase", "--size", "128x128", "--steps", "1", "--ranks", "1")
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(full)], capture_output=True
    )
    if mounted.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI can mount a small disk: {mounted.stderr!r}")
        pytest.skip("needs root to mount a small disk")
    try:
        process = start(*small, "--out", str(full / "image"), **{mark: "1"})
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 3
        assert "the disk is full" in errors
        check_nothing_left(mark, full / "image")
    finally:
        subprocess.run(["umount", str(full)], check=True)
