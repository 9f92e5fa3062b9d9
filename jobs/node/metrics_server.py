"""The agent's metrics: hears ranks and supervisors on a unix socket, serves what they tell."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback

from infra.metrics_exporter import DEFAULT_ADDRESS, OFF, AddressTaken, MetricsExporter, parse_address
from jobs.farm import Farm
from jobs.farm_metrics import FarmMetrics
from jobs.node.metrics_client import SOCKET, metrics_path
from render.launch.event_channel import EventReceiver
from render.launch.group_directory import GroupDirectory

_LOOK_S = 0.5


class MetricsServer(contextlib.ExitStack):
    """Open for as long as its `with` block lasts.

    `address` is HOST:PORT; `off` hears nobody; an empty one is the default, without which the node can do:
    where another agent of the machine has it, that is said and this one serves none.
    """

    def __init__(self, farm: Farm, node: str, device: str, address: str) -> None:
        super().__init__()
        self._insists, self._address = bool(address), address or DEFAULT_ADDRESS
        if address != OFF:
            parse_address(self._address)
        self._farm, self._node, self._device = farm, node, device
        self._ledger: MetricsExporter | None = None
        self._ended = threading.Event()
        self.environment: dict[str, str] = {}
        """What supervisors need in theirs to be heard."""

    def __enter__(self) -> MetricsServer:
        """Raises `BadSetting` when an address that was asked for cannot be served."""
        if self._address == OFF:
            return self
        ledger = MetricsExporter(self._node, self._device, FarmMetrics(self._farm.database))
        try:
            url, close = ledger.serve(self._address)
        except AddressTaken:
            if self._insists:
                raise
            words = "is taken, so this agent serves no metrics; --metrics-address gives it a port of its own"
            print(f"chorale: {self._address} {words}", file=sys.stderr, flush=True)
            return self
        self.callback(close)
        print(f"metrics at {url}", file=sys.stderr, flush=True)
        self._hear(ledger)
        return self

    def count_lost(self, node: str) -> None:
        """This agent has found that a node was lost in the middle of an attempt."""
        if self._ledger is not None:
            self._ledger.count_lost(node)

    def _hear(self, ledger: MetricsExporter) -> None:
        folder = GroupDirectory()
        self.callback(folder.close)
        desk = EventReceiver(metrics_path(folder.path))
        self.callback(desk.close)
        self._ledger, self.environment = ledger, {SOCKET: str(desk.path)}
        hearing = threading.Thread(target=self._listen, args=(desk, ledger), daemon=True, name="metrics")
        hearing.start()
        self.callback(hearing.join)
        self.callback(self._ended.set)

    def _listen(self, desk: EventReceiver, ledger: MetricsExporter) -> None:
        while not self._ended.is_set():
            try:
                told = desk.next(_LOOK_S)
                if told is not None:
                    ledger.take(told["measures"], told["pid"])
            except (ValueError, KeyError, TypeError):
                # No message of ours; it must not cost the node its metrics.
                traceback.print_exc()
