"""The node's ledger: holds what ranks and supervisors have counted, and serves it at `/metrics`.

It lives in the agent, so counts outlive the ranks and supervisors that made them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from socket import gaierror
from typing import Any

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
from infra.gpus import Gpus
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
"""Name, labels without the node's, and values: a counter's growth, what a histogram saw, a gauge's last."""

DEFAULT_ADDRESS = "127.0.0.1:9464"
OFF = "off"


class MetricsExporter:
    """All series of one node. `farm` gives the farm-wide ones at each scrape, and must not take long."""

    def __init__(
        self, node: str, device: str, farm: Callable[[], Iterable[Value]] = tuple, gpus: Gpus | None = None
    ) -> None:
        self.node = node
        self.registry = CollectorRegistry(auto_describe=False)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._ranks = _RankGauges(node)
        self._measured: dict[str, Counter | Histogram] = {
            series.name: _made(series, self.registry) for series in MEASURED
        }
        for reason in RESTART_REASONS:
            # A counter that begins at 1 has not grown, as Prometheus sees it.
            self._measured["chorale_group_restarts_total"].labels(node=node, reason=reason)
        look = (gpus or Gpus()).look

        def devices() -> Iterator[Value]:
            return ((name, {"node": node, "slot": str(slot)}, value) for name, slot, value in look())

        ProcessCollector(registry=self.registry)
        self.registry.register(self._ranks)
        self.registry.register(_Asked(DEVICE_GAUGES, devices))
        self.registry.register(_Asked(FARM_GAUGES, farm))
        self.registry.register(_Asked((BUILD,), lambda: [(BUILD.name, _build(node, device), 1.0)]))

    def take(self, measures: Iterable[Measure], pid: int) -> None:
        """Enter what a process of this node tells; a name or a label that is not known is left out."""
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
        """An attempt was lost with a node, which cannot tell of it itself."""
        lost = self._measured["chorale_group_restarts_total"]
        assert isinstance(lost, Counter)
        lost.labels(node=node, reason="lost").inc()

    def serve(self, address: str) -> tuple[str, Callable[[], None]]:
        """Serve `/metrics` at HOST:PORT, 0 for any free port: (its URL, what ends it).

        Raises `BadSetting` for an address that is none, or is taken.
        """
        host, port = parse_address(address)
        try:
            server, thread = start_http_server(port, host, self.registry)
        except gaierror as exc:
            raise BadSetting("metrics_address", address, "names no host of this machine") from exc
        except OSError as exc:
            problem = f"cannot be listened on ({exc.strerror}); give this agent another port, or `{OFF}`"
            raise AddressTaken("metrics_address", address, problem) from exc

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{server.server_port}/metrics", close


class AddressTaken(BadSetting):
    """Somebody listens there already, or the address is not this machine's."""


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[::1]:PORT`, or `PORT` on the loopback; raises `BadSetting`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host else "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or text.startswith(":"):
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


class _Asked(Collector):
    """Gauges whose values are asked for at each scrape."""

    def __init__(self, known: tuple[Series, ...], ask: Callable[[], Iterable[Value]]) -> None:
        self._known, self._ask = known, ask

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = {
            each.name: GaugeMetricFamily(each.name, each.help, labels=each.labels) for each in self._known
        }
        labels = {each.name: each.labels for each in self._known}
        for name, given, value in self._ask():
            families[name].add_metric([given[label] for label in labels[name]], value)
        yield from families.values()


@dataclass(eq=False)
class _RankGauges(Collector):
    """The last word of each living rank; it ends with its process, whose number nobody is told."""

    node: str
    _last: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    _known: frozenset[str] = frozenset(series.name for series in RANK_GAUGES)

    def set(self, name: str, labels: Mapping[str, Any], value: float, pid: int) -> None:
        if name in self._known and labels.keys() == {"slot"}:
            self._last[name, labels["slot"]] = pid, value

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return _Asked(RANK_GAUGES, self._living).collect()

    def _living(self) -> Iterator[Value]:
        for (name, slot), (pid, value) in sorted(self._last.items()):
            if Path(f"/proc/{pid}").exists():
                yield name, {"node": self.node, "slot": slot}, value
