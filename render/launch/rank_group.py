"""Starts a group with torchrun, listens to it, and stops it without leaving a process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import GroupBrokeOff, GroupFailed, JobStopped, JobTimedOut, PeersLost
from render.launch.event_channel import EventReceiver
from render.launch.group_directory import GroupDirectory, request_path
from render.launch.hardware import RANK_ENVIRONMENT
from render.launch.launcher import PEERS_LOST
from render.launch.request import Request

GRACE = 5.0
"""Seconds between asking a group to end and killing it."""
HUNG_S = 1800.0
"""A group of which nothing is heard for so long hangs; the longest step of a large image is far shorter."""
MASTER_PORT = 29400
"""Where the nodes of a group without a farm meet unless told."""
_LOG_LINES = 12
_LAST_CALL_S = 15
"""So long a group that is large enough waits for more nodes."""

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where the ranks of several nodes meet. `place` numbers the nodes; the first one hosts the meeting."""

    nodes: int
    place: int
    host: str
    port: int
    least: int | None = None
    """Fewer than `nodes` may do; then the first rank may be on any of them."""
    interface: str | None = None
    """The network interface to talk over; what a host's name resolves to is often the loopback."""

    @property
    def holds_first(self) -> bool:
        """Is rank 0 surely on this node?"""
        return self.place == 0 and self.least in (None, self.nodes)

    def arguments(self) -> list[str]:
        """What torchrun has to know."""
        if self.least in (None, self.nodes):
            words = ["--nnodes", str(self.nodes), "--node-rank", str(self.place)]
            return [*words, "--master-addr", self.host, "--master-port", str(self.port)]
        hosts = f"is_host={int(self.place == 0)},last_call_timeout={_LAST_CALL_S}"
        words = ["--nnodes", f"{self.least}:{self.nodes}", "--rdzv-backend", "c10d", "--rdzv-conf", hosts]
        return [*words, "--rdzv-endpoint", f"{self.host}:{self.port}", "--rdzv-id", "chorale"]


class RankGroup:
    """A group that torchrun starts on this machine, alone or with those of other nodes.

    It renders one image after another until it is closed, and opens nothing before the first. `gpus` are
    the numbers of the GPUs to use, where those are not all.
    """

    def __init__(
        self,
        ranks: int,
        *,
        rendezvous: Rendezvous | None = None,
        gpus: tuple[int, ...] | None = None,
        hung_s: float = HUNG_S,
    ) -> None:
        self.ranks, self._rendezvous, self._gpus, self._hung_s = ranks, rendezvous, gpus, hung_s
        self._requests = 0
        self._running: _Running | None = None

    def render(
        self,
        request: Request,
        on_event: OnEvent,
        *,
        timeout: float | None = None,
        on_tick: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any] | None:
        """Render one image. Returns the group's last news of it (kind `done`), None on a node that does not
        hold rank 0.

        `on_tick` is called several times a second; it may raise to give the render up, and says True to
        have the ranks keep a checkpoint after the step and end. Whenever this raises, the group is of no
        further use.
        Raises `GroupFailed`, `JobTimedOut` or `JobStopped`.
        """
        if self._running is None:
            self._running = _Running(self.ranks, self._rendezvous, self._gpus, self._hung_s)
            self._requests = 0
        self._requests += 1
        request.write(request_path(self._running.desk, self._requests))
        done = self._running.until_done(request, on_event, timeout, on_tick)
        if done is None and (self._rendezvous is None or self._rendezvous.holds_first):
            raise GroupFailed("the group of ranks ended without a word; nothing was published")
        return done

    def alive(self) -> bool:
        """Are its processes still there?"""
        return self._running is not None and self._running.alive()

    def close(self) -> None:
        """End all processes of the group; harmless when there are none."""
        if self._running is not None:
            self._running.stop()
            self._running = None


def _start(
    desk: Path, ranks: int, rendezvous: Rendezvous | None, gpus: tuple[int, ...] | None, log: Path
) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "render.launch.launcher", str(os.getpid()), str(ranks), str(desk)]
    meeting = ["--standalone"] if rendezvous is None else rendezvous.arguments()
    chosen = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    if rendezvous is not None and rendezvous.interface is not None:
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        chosen |= {name: rendezvous.interface for name in names if name not in os.environ}
    with log.open("ab") as file:
        return subprocess.Popen(
            [*launcher, *meeting],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | RANK_ENVIRONMENT | {"PYTHONUNBUFFERED": "1"} | chosen,
            start_new_session=True,
        )


class _Running:
    """A started group: its processes, and the desk where it gets requests and leaves news."""

    def __init__(
        self, ranks: int, rendezvous: Rendezvous | None, gpus: tuple[int, ...] | None, hung_s: float
    ) -> None:
        self._rendezvous, self._hung_s = rendezvous, hung_s
        self._desk = GroupDirectory()
        self.desk = self._desk.path
        self._log = self.desk / "log"
        self._news = EventReceiver(self._desk.news)
        self._process = _start(self.desk, ranks, rendezvous, gpus, self._log)
        self._pids: set[int] = set()
        self._asked: set[int] = set()
        self._error: dict[str, Any] | None = None
        self._done: dict[str, Any] | None = None
        self._stopped: str | None = None

    def alive(self) -> bool:
        return self._process.poll() is None

    def until_done(
        self,
        request: Request,
        on_event: OnEvent,
        timeout: float | None,
        on_tick: Callable[[], bool],
    ) -> dict[str, Any] | None:
        """Listen until the image is done; after the last request, until the processes have ended too."""
        self._done = None
        deadline = None if timeout is None else time.monotonic() + timeout
        heard = time.monotonic()
        while request.last or self._done is None:
            if on_tick():
                self._ask_to_stop()
            if self._error is not None:
                raise GroupFailed(self._error["text"], self._error["code"], outage=self._error["outage"])
            news = self._news.next(0.1)
            if news is not None:
                heard = time.monotonic()
                self._take(news)
                on_event(news)
            elif not self.alive():
                break
            if deadline is not None and time.monotonic() > deadline:
                raise JobTimedOut(f"timeout: the render was not done in {timeout:g} s; nothing was published")
            if time.monotonic() - heard > self._hung_s:
                raise GroupBrokeOff(
                    f"no rank has been heard of for {self._hung_s:g} s; the group is taken to hang"
                )
        if self._done is not None:
            # However its processes have ended after that: the image is there.
            return self._done
        if self._stopped is not None:
            raise JobStopped(self._stopped)
        if not self.alive() and (self._process.returncode != 0 or not request.last):
            words = "\n".join(_tail(self._log, request.log))
            if self._rendezvous is not None and self._process.returncode == PEERS_LOST:
                raise PeersLost(
                    f"other nodes of the group are gone; nothing was published. The last words here:\n{words}"
                )
            raise GroupBrokeOff(
                f"the group of ranks broke off; nothing was published. Its last words:\n{words}"
            )
        return None

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
        self._news.close()
        self._desk.close()

    def _take(self, news: dict[str, Any]) -> None:
        if news["kind"] == "started":
            self._pids.add(news["pid"])
        elif news["kind"] == "error":
            # The first error is the cause; those of the others follow from it.
            self._error = self._error or news
        elif news["kind"] == "done":
            self._done = news
        elif news["kind"] == "stopped":
            self._stopped = news["text"]

    def _ask_to_stop(self) -> None:
        # A rank is known only once it can take the signal.
        for pid in self._pids - self._asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
            self._asked.add(pid)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _tail(own: Path, ranks: str | None) -> list[str]:
    """The last words of torchrun and of the ranks."""
    logs = [own] if ranks is None else [own, Path(ranks)]
    texts = [log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists()]
    return [line for text in texts for line in text.splitlines() if line.strip()][-_LOG_LINES:]
