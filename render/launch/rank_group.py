"""A group of ranks: starts it with torchrun, receives its events, and ends it with all its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from render.errors import BadInput, GroupFailed, GroupLost, PeersLost, RenderTimedOut, Stopped
from render.events import Event, ImageDone, OnEvent, RankFailed, RankStarted, RankStopped, ignore_event
from render.launch.added_ranks import AddedRank, Order, order_to_add
from render.launch.event_channel import EventReceiver
from render.launch.gpus import VISIBLE
from render.launch.group_directory import (
    GroupDirectory,
    events_path,
    leave_path,
    log_path,
    mark_done,
    move_path,
    open_path,
    rendezvous_path,
    request_path,
    stop_path,
)
from render.launch.rank_environment import PEERS_LOST, RANK_ENVIRONMENT
from render.launch.rendezvous_config import SECRET_VARIABLE, Move, Rendezvous
from render.launch.request import Request

GRACE_S = 5.0
"""Between asking a group to end and killing it."""
HUNG_S = 1800.0
"""A group without an event for so long hangs; the longest step of a large image is far shorter."""
_EVENT_WAIT_S = 0.1
_LOG_LINES = 12
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="spawner")
"""Starts all groups of this process. The kernel ends a child with the thread that has started it, and the
caller's may end before the group is closed."""


class RankGroup:
    """A group that torchrun starts on this machine, alone or with those of other nodes.

    It renders one image after another until it is closed, and starts nothing before the first. `gpus` are
    the GPUs to use, as CUDA_VISIBLE_DEVICES takes them; None for all. A group without an event for `hung_s`
    seconds is taken to hang.
    """

    def __init__(
        self,
        ranks: int,
        *,
        rendezvous: Rendezvous | None = None,
        gpus: tuple[str, ...] | None = None,
        hung_s: float = HUNG_S,
    ) -> None:
        self.ranks, self._rendezvous = ranks, rendezvous or Rendezvous()
        self._gpus, self._hung_s = gpus, hung_s
        self._requests = 0
        self._running: _RunningGroup | None = None

    def render(
        self,
        request: Request,
        on_event: OnEvent = ignore_event,
        *,
        timeout: float | None = None,
        on_tick: Callable[[], bool] = lambda: False,
    ) -> ImageDone | None:
        """Render a request. Returns the group's last event, None on a node that does not hold rank 0.

        `on_tick` is called several times a second; it may raise to give the render up, and returns True to
        have the ranks save a checkpoint after the step and stop. `timeout` is in seconds. Whenever this
        raises, the group is of no further use.
        Raises `GroupFailed`, `RenderTimedOut` or `Stopped`.
        """
        number, running = self._hand_over(request)
        done = running.until_done(request, number, on_event, timeout, on_tick)
        if not self._rendezvous.holds_first:
            return None
        if done is None:
            raise GroupFailed("the group of ranks ended without an image; nothing was published")
        if not request.last:
            mark_done(running.directory, number)
        return done

    def begin(self, request: Request) -> int:
        """Hand over a request with `at_once` above 1 and return its number, which its events carry. Whoever
        calls this receives the events."""
        number, running = self._hand_over(request)
        running.last_event_at = time.monotonic()
        return number

    def _hand_over(self, request: Request) -> tuple[int, _RunningGroup]:
        if self._running is None:
            self._running = _RunningGroup(self.ranks, self._rendezvous, self._gpus, self._hung_s)
            self._requests = 0
        self._requests += 1
        request.write(request_path(self._running.directory, self._requests))
        return self._requests, self._running

    def receive(self) -> Event | None:
        """The next event of requests that were begun, or None when none has come for a moment. Raises
        `GroupFailed` for an error of the group as a whole, and `GroupLost` when it has ended or hangs."""
        assert self._running is not None, "nothing was begun"
        return self._running.receive()

    def stop_request(self, number: int) -> None:
        """Have one of the requests that were begun stop after its step, with a checkpoint."""
        if self._running is not None:
            stop_path(self._running.directory, number).touch()

    def open(self, rendezvous: Rendezvous) -> None:
        """Let ranks of other nodes join the group, which has begun on this one with `Rendezvous.opens`; they
        come by this rendezvous, with `joins`. Raises `GroupLost`."""
        if self._running is None:
            raise GroupLost("the group renders nothing, so nobody can join it")
        path = open_path(self._running.directory)
        rendezvous.write(path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    def move(self, move: Move) -> None:
        """Go on with another first node, since the one so far is lost; for groups with `Rendezvous.moves`
        that have sent `FirstNodeLost`."""
        self._rendezvous = replace(self._rendezvous, first=move.first)
        if self._running is not None:
            self._running.move(move)

    def add(self, ranks: Sequence[AddedRank]) -> None:
        """Have ranks of this node join the group that renders. They load the model first; the group takes
        each in between two steps, and goes on without one that fails.

        `EpochBegan` tells how many there are. One that fails sends `RankFailed` if it can, and `RankLeft`
        when its process has ended. Local ranks are not used again. Raises `GroupLost`.
        """
        self._send(order_to_add(ranks))

    def remove(self, local_ranks: Sequence[int]) -> None:
        """Have ranks of this node leave the group between two steps; each sends `RankLeft` when its process
        has ended. One of those that it has started with stays in any case. Raises `GroupLost`."""
        self._send(Order(remove=tuple(local_ranks)))

    def _send(self, order: Order) -> None:
        if self._running is None:
            raise GroupLost("the group renders nothing, so its ranks cannot change")
        try:
            order.send(self._running.directory)
        except OSError as exc:
            raise GroupLost(f"the group's processes are gone ({exc})") from exc

    def alive(self) -> bool:
        """Whether its processes are still there."""
        return self._running is not None and self._running.alive()

    def leave(self) -> None:
        """Have the other nodes go on when this one's processes are ended next, as if it were lost. Otherwise
        they end too."""
        if self._running is not None:
            leave_path(self._running.directory).touch()

    def close(self) -> None:
        """End all processes of the group; harmless when there are none."""
        if self._running is not None:
            self._running.stop()
            self._running = None


def _start(
    directory: Path, ranks: int, rendezvous: Rendezvous, gpus: tuple[str, ...] | None, log: Path
) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "render.launch.launcher", str(os.getpid()), str(ranks), str(directory)]
    # The secret goes by a file: command lines are for everybody to read, and ranks inherit the environment.
    rendezvous.write(rendezvous_path(directory))
    inherited = {name: value for name, value in os.environ.items() if name != SECRET_VARIABLE}
    chosen = {} if gpus is None else {VISIBLE: ",".join(gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environment = inherited | RANK_ENVIRONMENT | rendezvous.environment() | {"PYTHONUNBUFFERED": "1"} | chosen

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            return subprocess.Popen(
                launcher,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    return _SPAWNER.submit(start).result()


class _RunningGroup:
    """A started group: its processes, and the directory where it gets requests and sends events."""

    def __init__(
        self, ranks: int, rendezvous: Rendezvous, gpus: tuple[str, ...] | None, hung_s: float
    ) -> None:
        self._rendezvous, self._hung_s = rendezvous, hung_s
        self._group_directory = GroupDirectory()
        self.directory = self._group_directory.path
        self._log = log_path(self.directory)
        self._events = EventReceiver(events_path(self.directory))
        self._process = _start(self.directory, ranks, rendezvous, gpus, self._log)
        self._pids: dict[int, int] = {}
        """The process of each rank."""
        self._signaled: set[int] = set()
        self._failure: RankFailed | None = None
        self._done: ImageDone | None = None
        """The last event of the request; None as long as one of its images is missing."""
        self._missing: set[int] = set()
        self._number = 0
        """Of the request; a group that has formed anew may report the one before once more."""
        self._stopped: RankStopped | None = None
        self.last_event_at = time.monotonic()

    def alive(self) -> bool:
        return self._process.poll() is None

    def move(self, move: Move) -> None:
        self._rendezvous = replace(self._rendezvous, first=move.first)
        move.write(move_path(self.directory))

    def until_done(
        self,
        request: Request,
        number: int,
        on_event: OnEvent,
        timeout: float | None,
        on_tick: Callable[[], bool],
    ) -> ImageDone | None:
        """Receive events until the image is done; after the last request, until all processes have ended."""
        self._number, self._done, self._missing = number, None, set(range(len(request.images)))
        deadline = None if timeout is None else time.monotonic() + timeout
        last_event_at = time.monotonic()
        while request.last or self._done is None:
            if on_tick():
                self._request_stop()
            if self._failure is not None:
                raise group_failed(self._failure)
            event = self._events.next(_EVENT_WAIT_S)
            if event is not None:
                last_event_at = time.monotonic()
                self._take(event)
                on_event(event)
            elif not self.alive():
                break
            if deadline is not None and time.monotonic() > deadline:
                raise RenderTimedOut(
                    f"timeout: the render was not done in {timeout:g} s; nothing was published"
                )
            self._check_hung(last_event_at)
        return self._outcome(request)

    def receive(self) -> Event | None:
        """The next event of requests that are rendered at once; see `RankGroup.receive`."""
        event = self._events.next(_EVENT_WAIT_S)
        if event is None:
            if not self.alive():
                raise self._broke_off(None)
            self._check_hung(self.last_event_at)
            return None
        self.last_event_at = time.monotonic()
        match event:
            case RankStarted():
                self._pids[event.rank] = event.pid
            case RankFailed(image=0):
                raise group_failed(event)
        return event

    def _check_hung(self, last_event_at: float) -> None:
        if time.monotonic() - last_event_at > self._hung_s:
            raise GroupLost(f"no rank has sent an event for {self._hung_s:g} s; the group is taken to hang")

    def _outcome(self, request: Request) -> ImageDone | None:
        """What the group has come to; raises unless it has rendered the image, or its part of it."""
        if self._done is not None and (self._rendezvous.holds_first or not request.last):
            # However its processes have ended after that: the image is there.
            return self._done
        if self._stopped is not None:
            raise Stopped(self._stopped.text)
        if self.alive() or (self._process.returncode == 0 and request.last):
            return None
        raise self._broke_off(request.log)

    def _broke_off(self, log: str | None) -> GroupLost:
        lines = "\n".join(_tail(self._log, log))
        if self._rendezvous.nodes > 1 and self._process.returncode == PEERS_LOST:
            return PeersLost(
                f"other nodes of the group are gone; nothing was published. Its log ends:\n{lines}"
            )
        return GroupLost(f"the group of ranks broke off; nothing was published. Its log ends:\n{lines}")

    def stop(self) -> None:
        """TERM to torchrun, which passes it on; KILL after the grace. Ranks die with torchrun."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + GRACE_S
        while any(_alive(pid) for pid in self._pids.values()) and time.monotonic() < end:
            time.sleep(0.02)
        self._events.close()
        self._group_directory.close()

    def _take(self, event: Event) -> None:
        match event:
            case RankStarted():
                self._pids[event.rank] = event.pid
            case RankFailed(added=False):
                # The first error is the cause; those of the others follow from it.
                self._failure = self._failure or event
            case ImageDone() if event.request == self._number:
                self._missing.discard(event.image)
                self._done = self._done if self._missing else event
            case RankStopped():
                self._stopped = event

    def _request_stop(self) -> None:
        # A rank's pid is known only once it can take the signal.
        for pid in set(self._pids.values()) - self._signaled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
            self._signaled.add(pid)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def group_failed(failure: RankFailed) -> GroupFailed:
    """The error that a rank tells of."""
    bad = None if failure.bad_input is None else BadInput(*failure.bad_input)
    return GroupFailed(
        failure.text, failure.code, outage=failure.outage, bad_input=bad, permanent=failure.permanent
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _tail(own: Path, ranks: str | None) -> list[str]:
    """The last lines of torchrun's log and of the ranks'."""
    logs = [own] if ranks is None else [own, Path(ranks)]
    texts = [log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists()]
    return [line for text in texts for line in text.splitlines() if line.strip()][-_LOG_LINES:]
