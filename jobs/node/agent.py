"""The node's agent: keeps the node's lease, takes its share of dispatching, and launches supervisors.

The database is the truth: the agent looks there for parts of attempts that wait for this node. With a broker
it looks seldom, since its Celery worker hands it a message for each; without one it looks every second.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from infra.errors import ServiceError, StoreError
from infra.store.parts import remove_abandoned_parts
from jobs.db.nodes import set_draining
from jobs.farm import Farm, restore_embedded
from jobs.input_assets import INPUTS
from jobs.node.agent_socket import ANSWER_S, AgentSocket, socket_path
from jobs.node.clock_watch import ClockWatch
from jobs.node.follow_up_rounds import FollowUpRounds
from jobs.node.health import NodeHealth
from jobs.node.health_checks import EVERY_S, node_checks
from jobs.node.launcher import Launcher
from jobs.node.metrics_server import MetricsServer
from jobs.node.node_lease import NameTaken, NodeLease
from jobs.node.supervisors import Supervisors
from jobs.node.tasks import make_app, notify
from jobs.node.workers import Worker, follow_up_worker, launch_worker, rendition_worker
from jobs.numerics import local_numerics
from jobs.review.checking import check_recent
from jobs.scheduler.dispatcher import dispatch
from jobs.tags import stored_tags
from render.errors import BadInput
from render.launch.group_directory import remove_stale_group_directories

_ROUND_S = 1.0
"""Between two rounds of dispatching, and two looks at the supervisors, unless a message comes."""
_SWEEP_S = 10.0
"""Between two sweeps for attempts that no message has announced, while messages can reach this node. While
they cannot, every round sweeps."""
_OFFER_S = 0.6
"""Between two sweeps while an attempt waits for slots that a warm group has: it takes it, or ends."""
_LATE_S = 2.0
"""A message from this agent to its own worker is late after so long, and a sweep is due."""
_CHECK_S = 5.0
"""Between two looks for finished images that the quality gate has not seen."""
_log = logging.getLogger(__name__)


@dataclass
class Agent:
    """One node of the farm. `run` works until `stop` is called."""

    farm: Farm
    name: str
    slots: int
    address: str
    device: str
    home: Path
    metrics: MetricsServer
    vram_bytes: int | None = None
    tags: tuple[str, ...] = ()
    """Of its settings; people may give it more."""
    broker_url: str | None = None
    """None for no notifications; the agent then only polls."""
    _woken: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)
    _messages: queue.SimpleQueue[tuple[str, int, Future[str]]] = field(default_factory=queue.SimpleQueue)
    """What the worker asks to be launched: attempt, fence, where the answer goes."""
    _jobs_queued: threading.Event = field(default_factory=threading.Event)
    """A message says that there are new jobs to place."""
    _consuming: bool = False
    """Whether the worker has a connection to the broker, so that messages reach this node."""
    _dispatch_at: float = 0.0
    _dispatch_again_at: float = 0.0
    """Messages make the agent dispatch at this time at the soonest: at most half of its time goes there."""
    _swept: float = float("-inf")
    _sweep_by: float = 0.0
    """A sweep is due at this time at the latest."""
    _clock: ClockWatch = field(default_factory=ClockWatch)
    _worker: Worker | None = None
    _app: Celery | None = None
    _taken: NameTaken | None = None
    _restarts: bool = False
    """It has ended since people asked for a restart."""
    _stopped: bool = False
    _lease: NodeLease = field(init=False, repr=False)
    _health: NodeHealth = field(init=False, repr=False)
    _launcher: Launcher = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._logger = logging.LoggerAdapter(_log, {"node": self.name})
        self._lease = NodeLease(
            self.farm.database,
            self.name,
            {
                "address": self.address,
                "slots": self.slots,
                "device": self.device,
                "numerics": local_numerics().identity,
                "vram_bytes": self.vram_bytes,
                "own_tags": stored_tags(self.tags),
            },
        )
        gpus = self.slots if self.device == "cuda" else 0
        self._health = NodeHealth(node_checks(self.farm, self.name, self.home, gpus), EVERY_S)

    def run(self) -> None:
        """Raises `BadSetting` when `/metrics` cannot be served, and `BadInput` when another agent has the
        name, before the farm knows of this node; `NameTaken` when another one has taken it meanwhile."""
        with contextlib.suppress(OSError):
            self.home.mkdir(parents=True, exist_ok=True)
        remove_stale_group_directories()
        remove_abandoned_parts(self.home.parent / INPUTS)
        # Metrics end last, so that they count how the supervisors ended.
        with self.metrics:
            environment = {"CHORALE_DATABASE_URL": self.farm.url} | self.metrics.environment
            environment |= {"CHORALE_SLOT_IMAGES": self.farm.settings.slot_images}
            supervisors = Supervisors(self.name, self.home, environment)
            self._launcher = Launcher(
                self.farm.database, self.name, self.home, supervisors, self._health, self._lease
            )
            self._run()
        if self._taken is not None:
            raise self._taken

    def _run(self) -> None:
        self._health.start()
        if not self._lease.take(self._health.problems(), self._ended.wait):
            return
        if self.broker_url is not None:
            self._app = make_app(self.broker_url)
            AgentSocket(socket_path(self.home, self.name), self._answer).start()
            self._worker = launch_worker(self.name, self.home, self.broker_url)
        threading.Thread(target=self._check_images, daemon=True, name="quality gate").start()
        self._follow_ups().start(self._ended)
        try:
            while not self._ended.is_set():
                self._woken.wait(self._pause_s() if self._round() else _ROUND_S)
                self._woken.clear()
        finally:
            self._shut_down()

    def _pause_s(self) -> float:
        """Seconds until something is due."""
        dispatch_at = self._dispatch_again_at if self._jobs_queued.is_set() else self._dispatch_at
        return min(_ROUND_S, max(0.0, min(dispatch_at, self._next_sweep()) - time.monotonic()))

    def _answer(self, request: Mapping[str, Any]) -> str:
        """Answer the worker; runs in a thread of the socket, which starts no process itself."""
        match request:
            case {"task": "launch", "attempt": str(attempt), "fence": int(fence)}:
                answer: Future[str] = Future()
                self._messages.put((attempt, fence, answer))
                self._woken.set()
                try:
                    return answer.result(ANSWER_S)
                except Exception as exc:
                    return f"not now ({type(exc).__name__}: {exc}); the sweep looks again"
            case {"task": "schedule"}:
                self._jobs_queued.set()
                self._woken.set()
                return "noted"
            case {"consuming": bool(consuming)}:
                self._consuming = consuming
                self._woken.set()
                return "noted"
        return "unknown request"

    def _follow_ups(self) -> FollowUpRounds:
        if self.broker_url is None:
            return FollowUpRounds(self.farm, self._app, None)
        place = self.name, self.home, self.broker_url, self.farm.url
        return FollowUpRounds(self.farm, self._app, follow_up_worker(*place), rendition_worker(*place))

    def _check_images(self) -> None:
        """Runs in a thread of its own: the gate reads what was rendered from the store."""
        while not self._ended.wait(_CHECK_S):
            try:
                check_recent(self.farm, self.name)
            except (ServiceError, StoreError) as exc:
                self._logger.warning("%s", exc)
            except Exception:
                self._logger.exception("finished images could not be checked")

    def undrain(self) -> None:
        """Take jobs again if this node was drained before it ended."""
        with contextlib.suppress(BadInput), self.farm.database.write() as connection:
            set_draining(connection, self.name, False)

    def stop(self, *_: Any) -> None:
        """End after this round, for good; may be called from a signal handler."""
        self._stopped = True
        self._end()

    @property
    def restarts(self) -> bool:
        """Whether it has ended so that whoever runs it begins anew; not if it was stopped meanwhile."""
        return self._restarts and not self._stopped

    def _end(self) -> None:
        self._ended.set()
        self._woken.set()

    def _round(self) -> bool:
        """Whatever happens in one round, there is a next one: this process keeps all renders of the node.
        False if this one failed."""
        try:
            self._work()
            return True
        except NameTaken as exc:
            self._taken = exc
            self._ended.set()
        except Exception as exc:
            # The leases run out by themselves; the farm goes on when its database is back.
            self._clock.disturb()
            # What was to be launched in this round is still there.
            self._sweep_by = 0.0
            if isinstance(exc, ServiceError):
                self._logger.warning("%s", exc)
                self._restore()
            else:
                self._logger.exception("a round of the agent failed")
        return False

    def _restore(self) -> None:
        try:
            restore_embedded(self.farm)
        except Exception as exc:
            self._logger.warning("the embedded database could not be made again (%s)", exc)

    def _work(self) -> None:
        if (moment := self._lease.renew(self._health.problems())) is not None:
            self._clock.look(moment)
        if self._worker is not None and not self._worker.keep():
            self._consuming = False
        self._launch_announced()
        self._dispatch()
        if self._launcher.take_ended():
            self._sweep_by = 0.0
        self._sweep()
        if self._lease.restart and not len(self._launcher.supervisors):
            self._restarts = True
            self._end()

    def _launch_announced(self) -> None:
        """Launch what messages ask for."""
        with contextlib.suppress(queue.Empty):
            while True:
                attempt, fence, answer = self._messages.get_nowait()
                try:
                    answer.set_result(self._launcher.launch(attempt, fence))
                except Exception as exc:
                    answer.set_exception(exc)
                    raise

    def _dispatch(self) -> None:
        """One round of dispatching if it is due, and a message to each node that got a part of an attempt."""
        started = time.monotonic()
        if started < (self._dispatch_again_at if self._jobs_queued.is_set() else self._dispatch_at):
            return
        self._jobs_queued.clear()
        lost = self.metrics.count_lost
        gain = self.farm.settings.regroup_gain_s
        steady = self._clock.is_steady
        placed = dispatch(self.farm.database, self.name, is_steady=steady, on_lost=lost, regroup_gain_s=gain)
        ended = time.monotonic()
        # Counted from the end: on a slow machine the others, who renew leases, get at the database too.
        self._dispatch_at = ended + _ROUND_S
        self._dispatch_again_at = ended + (ended - started)
        if any(node == self.name for node, _, _ in placed):
            self._sweep_by = min(self._sweep_by, started + _LATE_S if self._consuming else 0.0)
        if self._app is not None and placed:
            # While the worker has no connection, the sweep is the quicker way to its own node.
            sent = [each for each in placed if self._consuming or each[0] != self.name]
            if any(node == self.name for node, _, _ in notify(self._app, sent)):
                self._sweep_by = 0.0

    def _sweep(self) -> None:
        """Launch what no message has announced, if it is time to look."""
        if time.monotonic() < self._next_sweep():
            return
        self._sweep_by = float("inf")
        self._launcher.sweep()
        self._swept = time.monotonic()

    def _next_sweep(self) -> float:
        every = _SWEEP_S if self._consuming else _ROUND_S
        return min(self._sweep_by, self._swept + (_OFFER_S if self._launcher.blocked else every))

    def _shut_down(self) -> None:
        """Sign off first, so that nothing more is placed here; then end the supervisors, which need the
        database to release their parts; the worker last, which nothing depends on."""
        with contextlib.suppress(ServiceError):
            self._lease.release()
        self._launcher.supervisors.stop(self.farm.settings.stop_s)
        if self._worker is not None:
            self._worker.stop()
