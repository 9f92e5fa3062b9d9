"""What a command takes: time of a processor, time by the clock, memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LOOK_S = 0.02


@dataclass(frozen=True, kw_only=True)
class CommandUsage:
    """A command that has ended."""

    processor_s: float
    seconds: float
    peak_bytes: int
    status: int
    errors: tuple[str, ...]
    """Its lines on stderr."""


def run_command(
    words: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> CommandUsage:
    """Run a command to its end.

    Its memory is looked up while it runs: what the kernel tells of a child that has ended (`ru_maxrss`)
    counts the memory of its parent too, which it shares until it begins its own program, and ours has torch
    in it.
    """
    with tempfile.TemporaryFile() as errors:
        begun = time.perf_counter()
        process = subprocess.Popen(
            list(words), cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        peak = 0
        while True:
            peak = max(peak, _peak_bytes(process.pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(_LOOK_S)
        seconds = time.perf_counter() - begun
        # Popen would look for a process that is gone.
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").splitlines()
    return CommandUsage(
        processor_s=usage.ru_utime + usage.ru_stime,
        seconds=seconds,
        peak_bytes=peak,
        status=process.returncode,
        errors=tuple(lines),
    )


def _peak_bytes(pid: int) -> int:
    """The most memory that a process has held; 0 for one that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
