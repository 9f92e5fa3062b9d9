"""The node's agent: keeps the node's lease, takes its share of dispatching, and starts supervisors.

The database is the truth: the agent looks there for parts of attempts that wait for this node. A Celery
message only makes it look sooner.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from infra.errors import ServiceError, StoreError
from jobs.db.claims import LEASE_S, unclaimed
from jobs.db.nodes import set_draining
from jobs.db.outcomes import fail
from jobs.farm import Farm, restore_embedded
from jobs.node.health import NodeHealth, Problem
from jobs.node.health_checks import EVERY_S, node_checks
from jobs.node.metrics_server import MetricsServer
from jobs.node.node_lease import NameTaken, NodeLease
from jobs.node.supervisors import Supervisors
from jobs.node.tasks import WAKEUP_SOCKET, make_app, notify, queue_of, wakeup_path
from jobs.node.wakeup import WakeupReceiver
from jobs.numerics import local_numerics
from jobs.report_delivery import is_configured, send_due
from jobs.review.checking import check_recent
from jobs.scheduler.dispatcher import dispatch
from render.errors import BadInput
from render.launch.group_directory import remove_stale_group_directories

_ROUND_S = 1.0
"""Between two looks into the database, unless a notification comes."""
_OFFER_S = 0.6
"""Warm groups have so long to take a new attempt before a group is started for it."""
_REPORT_S = 10.0
"""Between two looks for ended batches and closed queues, where reports are wanted."""
_CHECK_S = 5.0
"""Between two looks for finished images that the quality gate has not seen."""
_STOP_S = 5.0
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
    broker_url: str | None = None
    """None for no notifications; the agent then only polls."""
    _woken: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)
    _offered: set[str] = field(default_factory=set)
    _steady_since: float = field(default_factory=time.monotonic)
    _worker: subprocess.Popen[bytes] | None = None
    _app: Celery | None = None
    _taken: NameTaken | None = None
    _lease: NodeLease = field(init=False, repr=False)
    _health: NodeHealth = field(init=False, repr=False)
    _supervisors: Supervisors = field(init=False, repr=False)

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
        # Metrics end last, so that they count how the supervisors ended.
        with self.metrics:
            environment = {"CHORALE_DATABASE_URL": self.farm.url} | self.metrics.environment
            self._supervisors = Supervisors(self.name, self.home, environment)
            self._run()
        if self._taken is not None:
            raise self._taken

    def _run(self) -> None:
        self._health.start()
        if not self._lease.take(self._health.problems(), self._ended.wait):
            return
        if self.broker_url is not None:
            self._app = make_app(self.broker_url)
            WakeupReceiver(self.home, self.name, self._woken.set).start()
        threading.Thread(target=self._check_images, daemon=True, name="quality gate").start()
        if is_configured(self.farm.settings):
            threading.Thread(target=self._report, daemon=True, name="reports").start()
        try:
            while not self._ended.is_set():
                self._round()
                self._woken.wait(_OFFER_S if self._offered else _ROUND_S)
                self._woken.clear()
        finally:
            self._shut_down()

    def _report(self) -> None:
        """Runs in a thread of its own: a mail server may be slow to answer."""
        while not self._ended.wait(_REPORT_S):
            try:
                send_due(self.farm)
            except ServiceError as exc:
                self._logger.warning("%s", exc)
            except Exception:
                # There is a next look: no report stops the others.
                self._logger.exception("reports could not be sent")

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
        """End after this round; may be called from a signal handler."""
        self._ended.set()
        self._woken.set()

    def _round(self) -> None:
        """Whatever happens in one round, there is a next one: this process keeps all renders of the node."""
        try:
            self._work()
        except NameTaken as exc:
            self._taken = exc
            self._ended.set()
        except Exception as exc:
            # The leases run out by themselves; the farm goes on when its database is back.
            self._steady_since = time.monotonic()
            if isinstance(exc, ServiceError):
                self._logger.warning("%s", exc)
                self._restore()
            else:
                self._logger.exception("a round of the agent failed")

    def _restore(self) -> None:
        try:
            restore_embedded(self.farm)
        except Exception as exc:
            self._logger.warning("the embedded database could not be made again (%s)", exc)

    def _work(self) -> None:
        self._lease.renew(self._health.problems())
        self._keep_worker()
        # Right after the database was away all leases look old; their holders get the time to renew them.
        steady = time.monotonic() - self._steady_since > LEASE_S
        lost = self.metrics.count_lost
        placed = dispatch(self.farm.database, self.name, sweeping=steady, on_lost=lost)
        ended = self._supervisors.take_ended()
        with self.farm.database.read() as connection:
            waiting = unclaimed(connection, self.name)
        self._start_waiting(waiting, ended)
        if self._app is not None and placed:
            notify(self._app, [each for each in placed if each[0] != self.name])

    def _start_waiting(self, waiting: dict[str, tuple[int, ...]], ended: dict[str, int]) -> None:
        """Start supervisors for the attempts that wait; give them back if this node cannot."""
        problems = self._health.problems()
        died = [attempt for attempt, code in ended.items() if code != 0 and attempt in waiting]
        if died and not problems:
            # It never claimed its part, so nobody else tells why.
            log = self.home / "supervisors.log"
            self._health.report_start_failure(f"start: a supervisor ended with {ended[died[0]]}; see {log}")
        chosen = {
            attempt: slots
            for attempt, slots in waiting.items()
            if attempt not in self._supervisors and (not self._supervisors or attempt in self._offered)
        }
        problems = self._health.look() if chosen else self._health.problems()
        for attempt, slots in chosen.items():
            if problems:
                break
            try:
                self._supervisors.start(attempt, slots)
            except OSError as exc:
                self._health.report_start_failure(f"start: no supervisor can be started ({exc})")
                problems = self._health.problems()
        if problems:
            self._give_back([attempt for attempt in waiting if attempt not in self._supervisors], problems)
        # A warm group takes what was placed on its slots within a moment; others are started a round later.
        self._offered = {attempt for attempt in waiting if attempt not in self._supervisors}

    def _give_back(self, waiting: list[str], problems: list[Problem]) -> None:
        """Queue the jobs of attempts that this node cannot start again; they count for nothing."""
        # First the node is taken out, so that they are not placed here again.
        self._lease.renew(problems)
        for attempt in waiting:
            reason = f"node {self.name} is unhealthy: {problems[0].text}"
            with self.farm.database.write() as connection:
                fail(connection, attempt, reason, None, None, never_met=True)

    def _keep_worker(self) -> None:
        """Start the node's Celery worker, and start it again when it has died. The agent polls without it."""
        if self.broker_url is None or (self._worker is not None and self._worker.poll() is None):
            return
        arguments = ["-A", "jobs.node.tasks", "worker", "-Q", queue_of(self.name), "-P", "solo"]
        arguments += [
            "-l",
            "warning",
            "-n",
            f"chorale@{self.name}",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
        wakeup = str(wakeup_path(self.home, self.name))
        environment = {WAKEUP_SOCKET: wakeup, "CHORALE_BROKER_URL": self.broker_url}
        with contextlib.suppress(OSError), (self.home / "worker.log").open("ab") as log:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "jobs.node.celery_worker", str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )

    def _shut_down(self) -> None:
        """Sign off first, so that nothing more is placed here; then end the supervisors, which need the
        database to release their parts; the worker last, which nothing depends on."""
        with contextlib.suppress(ServiceError):
            self._lease.release()
        self._supervisors.stop(self.farm.settings.stop_s)
        if self._worker is not None:
            self._worker.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._worker.wait(_STOP_S)
