"""The agent's metrics: receives those of ranks and supervisors on a unix socket, and serves `/metrics`."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from pathlib import Path

from infra.metrics_exporter import DEFAULT_ADDRESS, OFF, AddressTaken, MetricsExporter, parse_address
from jobs.farm import Farm
from jobs.farm_metrics import FarmMetrics
from jobs.node.metrics_client import SOCKET, metrics_path
from render.launch.event_channel import DatagramReceiver
from render.launch.gpus import read_gpus
from render.launch.group_directory import GroupDirectory

_RECEIVE_S = 0.5
_RETRY_S = 2.0
_log = logging.getLogger(__name__)


class MetricsServer(contextlib.ExitStack):
    """Open for as long as its `with` block lasts.

    `address` is HOST:PORT, or `off` for none. Empty is the default address, which is optional: where another
    agent of the machine has it, a warning is logged and this one serves no metrics.
    """

    def __init__(self, farm: Farm, node: str, device: str, address: str) -> None:
        super().__init__()
        self._required, self._address = bool(address), address or DEFAULT_ADDRESS
        if address != OFF:
            parse_address(self._address)
        self._farm, self._node, self._device = farm, node, device
        self._exporter: MetricsExporter | None = None
        self._closing = threading.Event()
        self.environment: dict[str, str] = {}
        """What supervisors need in theirs to send metrics."""

    def __enter__(self) -> MetricsServer:
        """Raises `BadSetting` when a required address cannot be served."""
        if self._address == OFF:
            return self
        exporter = MetricsExporter(self._node, self._device, FarmMetrics(self._farm.database), read_gpus)
        try:
            url, close = exporter.serve(self._address)
        except AddressTaken:
            if self._required:
                raise
            _log.warning(
                "%s is taken, so this agent serves no metrics; --metrics-address gives it a port of its own",
                self._address,
            )
            return self
        self.callback(close)
        _log.info("metrics at %s", url)
        self._open(exporter)
        return self

    def count_lost(self, node: str) -> None:
        """This agent has found that a node was lost in the middle of an attempt."""
        if self._exporter is not None:
            self._exporter.count_lost(node)

    def _open(self, exporter: MetricsExporter) -> None:
        directory = GroupDirectory()
        self.callback(directory.close)
        path = metrics_path(directory.path)
        self._exporter, self.environment = exporter, {SOCKET: str(path)}
        thread = threading.Thread(target=self._run, args=(path, exporter), daemon=True, name="metrics")
        thread.start()
        self.callback(thread.join)
        self.callback(self._closing.set)

    def _run(self, path: Path, exporter: MetricsExporter) -> None:
        """Nothing ends this thread but the server's end."""
        told = ""
        while not self._closing.is_set():
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                receiver = DatagramReceiver(path)
                try:
                    self._receive(receiver, exporter)
                finally:
                    receiver.close()
            except Exception as exc:
                if str(exc) != told:
                    _log.warning("no metrics of ranks are received (%s)", exc)
                told = str(exc)
                self._closing.wait(_RETRY_S)

    def _receive(self, receiver: DatagramReceiver, exporter: MetricsExporter) -> None:
        """Until the socket is gone, for instance with the temporary folder."""
        while not self._closing.is_set() and receiver.path.exists():
            try:
                message = receiver.receive(_RECEIVE_S)
                if message is not None:
                    values = json.loads(message)
                    exporter.record(values["measures"], values["pid"])
            except (ValueError, KeyError, TypeError):
                # No message of ours; it must not cost the node its metrics.
                _log.exception("a message that is no metric")
