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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.errors import GroupBrokeOff, GroupFailed, JobCancelled, JobTimedOut
from jobs.node.news import NewsDesk
from jobs.node.request import Request

GRACE = 5.0
"""Seconds between asking a group to end and killing it."""
_LOG_LINES = 12

OnNews = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where the ranks of several nodes meet. `place` numbers the nodes; the first one hosts the meeting."""

    nodes: int
    place: int
    host: str
    port: int
    interface: str | None = None
    """The network interface to talk over; what a host's name resolves to is often the loopback."""


def run_group(
    request: Request,
    ranks: int,
    on_news: OnNews,
    timeout: float | None = None,
    *,
    rendezvous: Rendezvous | None = None,
    gpus: tuple[int, ...] | None = None,
    log: Path | None = None,
    on_tick: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Render one image with `ranks` ranks on this machine, alone or with those of other nodes.

    `gpus` are the numbers of the GPUs to use, where those are not all.

    Returns the group's last news (kind `done`), None on a node that does not hold rank 0. `on_tick` is
    called several times a second and may raise to end the render.
    Raises `GroupFailed`, `JobCancelled` (SIGINT or SIGTERM came) or `JobTimedOut`. Whatever happens, no
    process of the group outlives the call.
    """
    with tempfile.TemporaryDirectory(prefix="chorale-") as folder, cancellable():
        here = Path(folder)
        log = log or here / "log"
        request = replace(request, news=str(here / "news"))
        request.write(here / "request.json")
        with NewsDesk(here / "news") as desk, log.open("ab") as file:
            process = _start(here / "request.json", ranks, rendezvous, gpus, file)
            watch = _Watch(process, on_news, timeout)
            try:
                done = watch.until_done(desk, log, on_tick)
            finally:
                watch.stop()
        if done is None and (rendezvous is None or rendezvous.place == 0):
            raise GroupFailed("the group of ranks ended without a word; nothing was published")
        return done


def _start(
    request: Path, ranks: int, rendezvous: Rendezvous | None, gpus: tuple[int, ...] | None, log: Any
) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "jobs.node.launcher", str(os.getpid())]
    meeting = ["--standalone"]
    if rendezvous is not None:
        meeting = ["--nnodes", str(rendezvous.nodes), "--node-rank", str(rendezvous.place)]
        meeting += ["--master-addr", rendezvous.host, "--master-port", str(rendezvous.port)]
    chosen = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    if rendezvous is not None and rendezvous.interface is not None:
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        chosen |= {name: rendezvous.interface for name in names if name not in os.environ}
    return subprocess.Popen(
        [*launcher, *meeting, "--nproc-per-node", str(ranks), "-m", "jobs.node.rank", str(request)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | chosen,
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

    def until_done(self, desk: NewsDesk, log: Path, on_tick: Callable[[], None]) -> dict[str, Any] | None:
        while True:
            on_tick()
            if self._error is not None:
                raise GroupFailed(self._error["text"], self._error["code"])
            news = desk.next(0.1)
            if news is not None:
                self._take(news)
            elif self._process.poll() is not None:
                break
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise JobTimedOut(
                    f"timeout: the render was not done in {self._timeout:g} s; nothing was published"
                )
        if self._process.returncode != 0:
            tail = "\n".join(_tail(log))
            raise GroupBrokeOff(
                f"the group of ranks broke off; nothing was published. Its last words:\n{tail}"
            )
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
def cancellable() -> Iterator[None]:
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
