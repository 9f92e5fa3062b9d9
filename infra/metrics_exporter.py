"""The node's metrics exporter: adds up what ranks and supervisors report, and serves it at `/metrics`.

It runs in the agent, so that counts outlive the ranks and supervisors that reported them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from socket import gaierror
from typing import Any

import psutil
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from infra.errors import BadSetting
from infra.metrics import (
    BUILD,
    DEVICE_GAUGES,
    FARM_GAUGES,
    MEASURED,
    RANK_GAUGES,
    RESTART_REASONS,
    Series,
)

Value = tuple[str, Mapping[str, str], float]
"""Name of a series, its labels, and its value."""
Measure = tuple[str, dict[str, str], list[float]]
"""Name, labels without `node`, and values: increments, observations, or a gauge's last value."""

Reading = tuple[str, int, float]
"""Name of a series, the slot, and its value."""

DEFAULT_ADDRESS = "127.0.0.1:9464"
OFF = "off"


class MetricsExporter:
    """All series of one node. `farm` and `gpus` are read at each scrape and must be quick."""

    def __init__(
        self,
        node: str,
        device: str,
        farm: Callable[[], Iterable[Value]] = tuple,
        gpus: Callable[[], Iterable[Reading]] = tuple,
    ) -> None:
        self.node = node
        self.registry = CollectorRegistry(auto_describe=False)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._ranks = _RankGauges(node)
        self._measured: dict[str, Counter | Histogram] = {
            series.name: _made(series, self.registry) for series in MEASURED
        }
        for reason in RESTART_REASONS:
            # Prometheus sees no increase in a counter that first appears at 1.
            self._measured["chorale_group_restarts_total"].labels(node=node, reason=reason)

        def devices() -> Iterator[Value]:
            return ((name, {"node": node, "slot": str(slot)}, value) for name, slot, value in gpus())

        ProcessCollector(registry=self.registry)
        self.registry.register(self._ranks)
        self.registry.register(_Callback(DEVICE_GAUGES, devices))
        self.registry.register(_Callback(FARM_GAUGES, farm))
        self.registry.register(_Callback((BUILD,), lambda: [(BUILD.name, _build(node, device), 1.0)]))

    def record(self, measures: Iterable[Measure], pid: int) -> None:
        """Record what a process of this node reports; unknown names and labels are ignored."""
        for name, labels, values in measures:
            series = self._measured.get(name)
            if series is None:
                self._ranks.set(name, labels, values[-1], pid)
                continue
            try:
                own = series.labels(**labels, node=self.node)
            except ValueError:
                continue
            if isinstance(own, Counter):
                own.inc(sum(values))
            else:
                for value in values:
                    own.observe(value)

    def count_lost(self, node: str) -> None:
        """Count an attempt that was lost with its node, which cannot report it."""
        lost = self._measured["chorale_group_restarts_total"]
        assert isinstance(lost, Counter)
        lost.labels(node=node, reason="lost").inc()

    def serve(self, address: str) -> tuple[str, Callable[[], None]]:
        """Serve `/metrics` at HOST:PORT (0 for any free port); returns its URL and a function that stops it.

        Raises `BadSetting` for an invalid address, `AddressTaken` for one in use.
        """
        host, port = parse_address(address)
        try:
            server, thread = start_http_server(port, host, self.registry)
        except gaierror as exc:
            raise BadSetting("metrics_address", address, "is not an address of this machine") from exc
        except OSError as exc:
            problem = f"is not available ({exc.strerror}); use another port, or {OFF}"
            raise AddressTaken("metrics_address", address, problem) from exc

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{server.server_port}/metrics", close


class AddressTaken(BadSetting):
    """The address is in use, or is not this machine's."""


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[::1]:PORT`, or `PORT` on the loopback; raises `BadSetting`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host else "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port[:9]) > 65535 or text.startswith(":"):
        raise BadSetting("metrics_address", text, "is not HOST:PORT; use e.g. 0.0.0.0:9464, or off")
    return host, int(port)


def _made(series: Series, registry: CollectorRegistry) -> Counter | Histogram:
    if series.kind == "counter":
        return Counter(series.name, series.help, series.labels, registry=registry)
    return Histogram(series.name, series.help, series.labels, registry=registry, buckets=series.buckets)


def _build(node: str, device: str) -> dict[str, str]:
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    return {
        "node": node,
        "version": version("chorale"),
        "python": platform.python_version(),
        "torch": torch,
        "device": device,
    }


class _Callback(Collector):
    """Gauges whose values are read at each scrape."""

    def __init__(self, known: tuple[Series, ...], read: Callable[[], Iterable[Value]]) -> None:
        self._known, self._read = known, read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = {
            each.name: GaugeMetricFamily(each.name, each.help, labels=each.labels) for each in self._known
        }
        labels = {each.name: each.labels for each in self._known}
        for name, given, value in self._read():
            families[name].add_metric([given[label] for label in labels[name]], value)
        yield from families.values()


@dataclass(eq=False)
class _RankGauges(Collector):
    """The last value of each running rank; a series ends with its process. The pid is not exported."""

    node: str
    _last: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    _known: frozenset[str] = frozenset(series.name for series in RANK_GAUGES)

    def set(self, name: str, labels: Mapping[str, Any], value: float, pid: int) -> None:
        if name in self._known and labels.keys() == {"slot"}:
            self._last[name, labels["slot"]] = pid, value

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return _Callback(RANK_GAUGES, self._running).collect()

    def _running(self) -> Iterator[Value]:
        for (name, slot), (pid, value) in sorted(self._last.items()):
            if psutil.pid_exists(pid):
                yield name, {"node": self.node, "slot": slot}, value
