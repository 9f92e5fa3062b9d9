"""Starts a group with torchrun, listens to it, and stops it without leaving a process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.errors import GroupFailed, JobCancelled, JobTimedOut
from jobs.node.news import NewsDesk
from jobs.node.request import Request

GRACE = 5.0
"""Seconds between asking a group to end and killing it."""
_LOG_LINES = 12

OnNews = Callable[[dict[str, Any]], None]


def run_group(request: Request, ranks: int, on_news: OnNews, timeout: float | None = None) -> dict[str, Any]:
    """Render one image with `ranks` ranks on this machine; the last news of the group (kind `done`).

    Raises `GroupFailed`, `JobCancelled` (SIGINT or SIGTERM came) or `JobTimedOut`. Whatever happens, no
    process of the group outlives the call.
    """
    with tempfile.TemporaryDirectory(prefix="chorale-") as folder, _cancellable():
        here = Path(folder)
        request = replace(request, news=str(here / "news"))
        request.write(here / "request.json")
        with NewsDesk(here / "news") as desk, (here / "log").open("wb") as log:
            process = _start(here / "request.json", ranks, log)
            watch = _Watch(process, on_news, timeout)
            try:
                return watch.until_done(desk, here / "log")
            finally:
                watch.stop()


def _start(request: Path, ranks: int, log: Any) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "jobs.node.launcher", str(os.getpid())]
    return subprocess.Popen(
        [*launcher, "--standalone", "--nproc-per-node", str(ranks), "-m", "jobs.node.rank", str(request)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


class _Watch:
    """Listens to a running group and knows its processes."""

    def __init__(self, process: subprocess.Popen[bytes], on_news: OnNews, timeout: float | None) -> None:
        self._process, self._on_news = process, on_news
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._pids: set[int] = set()
        self._error: dict[str, Any] | None = None
        self._done: dict[str, Any] | None = None

    def until_done(self, desk: NewsDesk, log: Path) -> dict[str, Any]:
        while True:
            news = desk.next(0.1)
            if news is not None:
                self._take(news)
            elif self._process.poll() is not None:
                break
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise JobTimedOut(
                    f"timeout: the render was not done in {self._timeout:g} s; nothing was published"
                )
        if self._error is not None:
            raise GroupFailed(self._error["text"], self._error["code"])
        if self._process.returncode != 0 or self._done is None:
            tail = "\n".join(_tail(log))
            raise GroupFailed(f"the group of ranks broke off; nothing was published. Its last words:\n{tail}")
        return self._done

    def stop(self) -> None:
        """TERM to torchrun, which passes it on; KILL after the grace. Ranks die with it, see lifeline."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + GRACE
        while any(_alive(pid) for pid in self._pids) and time.monotonic() < end:
            time.sleep(0.02)

    def _take(self, news: dict[str, Any]) -> None:
        if news["kind"] == "started":
            self._pids.add(news["pid"])
        elif news["kind"] == "error":
            # The first error is the cause; those of the others follow from it.
            self._error = self._error or news
        elif news["kind"] == "done":
            self._done = news
        self._on_news(news)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _tail(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-_LOG_LINES:]


@contextlib.contextmanager
def _cancellable() -> Iterator[None]:
    """SIGINT and SIGTERM become `JobCancelled`; a second one, while stopping, changes nothing."""
    seen = False

    def cancel(number: int, _: object) -> None:
        nonlocal seen
        if not seen:
            seen = True
            raise JobCancelled("cancelled; every rank was stopped and nothing was published")

    before = {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
