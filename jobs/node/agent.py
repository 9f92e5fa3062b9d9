"""The node's agent: keeps the node's lease, takes its share of dispatching, and starts supervisors.

The database is the truth: the agent looks there for parts of attempts that wait for this node. A Celery
message only makes it look sooner.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from infra.errors import ServiceError
from jobs.db.claims import LEASE_S, unclaimed
from jobs.db.nodes import register, renew, set_draining, sign_off
from jobs.farm import Farm
from jobs.node.metrics_server import MetricsServer
from jobs.node.tasks import WAKEUP_SOCKET, make_app, notify, queue_of, wakeup_path
from jobs.numerics import local_numerics
from jobs.report_delivery import is_configured, send_due
from jobs.scheduler.dispatcher import dispatch
from render.errors import BadInput
from render.launch.group_directory import remove_stale_group_directories

_ROUND_S = 1.0
"""Between two looks into the database, unless a notification comes."""
_OFFER_S = 0.6
"""Warm groups have so long to take a new attempt before a group is started for it."""
RENEW_S = 1.0
_REPORT_S = 10.0
"""Between two looks for ended batches and closed queues, where reports are wanted."""
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
    _supervisors: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _offered: set[str] = field(default_factory=set)
    _renewed: float = 0.0
    _steady_since: float = field(default_factory=time.monotonic)
    _worker: subprocess.Popen[bytes] | None = None
    _app: Celery | None = None

    def __post_init__(self) -> None:
        self._logger = logging.LoggerAdapter(_log, {"node": self.name})

    def run(self) -> None:
        """Raises `BadSetting` when `/metrics` cannot be served, before the farm knows of this node."""
        self.home.mkdir(parents=True, exist_ok=True)
        remove_stale_group_directories()
        # Metrics end last, so that they count how the supervisors ended.
        with self.metrics:
            self._run()

    def _run(self) -> None:
        if self.broker_url is not None:
            self._app = make_app(self.broker_url)
            threading.Thread(target=self._receive_wakeups, daemon=True, name="wakeup").start()
        if is_configured(self.farm.settings):
            threading.Thread(target=self._report, daemon=True, name="reports").start()
        with self.farm.database.write() as connection:
            register(
                connection,
                self.name,
                address=self.address,
                slots=self.slots,
                device=self.device,
                numerics=local_numerics().identity,
                vram_bytes=self.vram_bytes,
            )
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
        except ServiceError as exc:
            # The leases run out by themselves; the farm goes on when its database is back.
            self._logger.warning("%s", exc)
            self._steady_since = time.monotonic()
        except Exception:
            self._logger.exception("a round of the agent failed")

    def _work(self) -> None:
        self._renew()
        self._keep_worker()
        # Right after the database was away all leases look old; their holders get the time to renew them.
        steady = time.monotonic() - self._steady_since > LEASE_S
        lost = self.metrics.count_lost
        placed = dispatch(self.farm.database, self.name, sweeping=steady, on_lost=lost)
        with self.farm.database.read() as connection:
            waiting = unclaimed(connection, self.name)
        for attempt in waiting:
            if attempt not in self._supervisors and (not self._supervisors or attempt in self._offered):
                self._supervisors[attempt] = self._start(attempt)
        # A warm group takes what was placed on its slots within a moment; others are started a round later.
        self._offered = set(waiting) - self._supervisors.keys()
        for attempt, process in list(self._supervisors.items()):
            if process.poll() is not None:
                del self._supervisors[attempt]
        if self._app is not None and placed:
            notify(self._app, [each for each in placed if each[0] != self.name])

    def _renew(self) -> None:
        if time.monotonic() - self._renewed > RENEW_S:
            with self.farm.database.write() as connection:
                renew(connection, self.name)
            self._renewed = time.monotonic()

    def _keep_worker(self) -> None:
        """Start the node's Celery worker, and start it again when it has died."""
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
        with (self.home / "worker.log").open("ab") as log:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "jobs.node.celery_worker", str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )

    def _receive_wakeups(self) -> None:
        """Wait for the worker's notifications."""
        path = wakeup_path(self.home, self.name)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(str(path))
            while not self._ended.is_set():
                server.recv(256)
                self._woken.set()

    def _start(self, attempt: str) -> subprocess.Popen[bytes]:
        home = str(self.home)
        with (self.home / "supervisors.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "jobs.node.supervisor", str(os.getpid()), self.name, attempt, home],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"CHORALE_DATABASE_URL": self.farm.url} | self.metrics.environment,
            )

    def _shut_down(self) -> None:
        """Sign off first, so that nothing more is placed here; then end the supervisors, which need the
        database to release their parts; the worker last, which nothing depends on."""
        with contextlib.suppress(ServiceError), self.farm.database.write() as connection:
            sign_off(connection, self.name)
        for process in self._supervisors.values():
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + self.farm.settings.stop_s
        for process in self._supervisors.values():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
