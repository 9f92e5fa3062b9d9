"""The command line as a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

CHORALE = [sys.executable, "-m", "jobs.cli.main"]


def chorale(
    *arguments: str, timeout: float = 300, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run([*prefix, *CHORALE, *arguments], capture_output=True, text=True, timeout=timeout)


def start(
    *arguments: str, prefix: tuple[str, ...] = (), log: IO[str] | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start in a session of its own, as a terminal or a service would."""
    return subprocess.Popen(
        [*prefix, *CHORALE, *arguments],
        stdout=log or subprocess.PIPE,
        stderr=log or subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
    )


def last_json(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return document


def processes_with(mark: str) -> dict[int, str]:
    """Pid -> command line of every process whose environment holds the mark, zombies left out."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if mark.encode() in environment and command and int(entry.name) != os.getpid():
            found[int(entry.name)] = command
    return found


def ranks_with(mark: str) -> list[int]:
    """Pids of the ranks of a render that carries the mark."""
    listed = processes_with(mark).items()
    return [
        pid
        for pid, command in listed
        if "render.launch.rank" in command and "render.launch.launcher" not in command
    ]


def wait_until(true: Callable[[], Any], seconds: float = 60) -> Any:
    """Poll until something is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{true} did not become true in {seconds} s")
