"""What processes report is exported at /metrics, under the names that the table lists."""

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.errors import BadSetting
from infra.metrics import FARM_GAUGES, MEASURED, RANK_GAUGES, Series, every_series, names
from infra.metrics_exporter import MetricsExporter, Value, parse_address


def two_gpus() -> Iterator[tuple[str, int, float]]:
    """What a driver would report of two devices."""
    for number in range(2):
        yield "chorale_vram_used_bytes", number, 3e9
        yield "chorale_vram_total_bytes", number, 8e10
        yield "chorale_gpu_utilization_ratio", number, 0.5


def labels_of(series: Series) -> dict[str, str]:
    return {label: "0" for label in series.labels if label != "node"}


def farm() -> list[Value]:
    return [(series.name, dict.fromkeys(series.labels, "x"), 1.0) for series in FARM_GAUGES]


def shown(exporter: MetricsExporter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Everything at a real /metrics, by name and labels."""
    url, close = exporter.serve("127.0.0.1:0")
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    finally:
        close()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(exporter: MetricsExporter, name: str, **labels: str) -> float | None:
    return shown(exporter).get((name, frozenset(labels.items())))


def test_metrics_shows_the_names_of_the_table_and_no_others() -> None:
    exporter = MetricsExporter("n1", "cuda", farm, two_gpus)
    exporter.record(
        [(series.name, labels_of(series), [1.0]) for series in MEASURED + RANK_GAUGES], os.getpid()
    )
    ours = {name for name, _ in shown(exporter) if name.startswith("chorale_")}
    assert ours == names()


def test_counts_add_up_and_histograms_see_each_value() -> None:
    exporter = MetricsExporter("n1", "cpu")
    for steps in (3.0, 4.0):
        exporter.record([("chorale_steps_total", {"slot": "0", "model": "m"}, [steps])], os.getpid())
    exporter.record([("chorale_step_seconds", {"slot": "0", "phase": "wait"}, [0.02, 0.2])], os.getpid())
    assert value(exporter, "chorale_steps_total", node="n1", slot="0", model="m") == 7
    assert value(exporter, "chorale_step_seconds_count", node="n1", slot="0", phase="wait") == 2
    assert value(exporter, "chorale_step_seconds_sum", node="n1", slot="0", phase="wait") == pytest.approx(
        0.22
    )


def test_what_a_rank_holds_ends_with_its_process_but_its_counts_stay() -> None:
    rank = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    exporter = MetricsExporter("n1", "cpu")
    told: list[Any] = [("chorale_rank_resident_bytes", {"slot": "1"}, [5e8])]
    exporter.record([*told, ("chorale_steps_total", {"slot": "1", "model": "m"}, [3.0])], rank.pid)
    assert value(exporter, "chorale_rank_resident_bytes", node="n1", slot="1") == 5e8
    rank.communicate(b"\n")
    assert value(exporter, "chorale_rank_resident_bytes", node="n1", slot="1") is None
    assert value(exporter, "chorale_steps_total", node="n1", slot="1", model="m") == 3


def test_what_is_not_in_the_table_is_left_out() -> None:
    exporter = MetricsExporter("n1", "cpu")
    before = shown(exporter).keys()
    exporter.record(
        [
            ("chorale_jobs_rendered_total", {"job": "3fa9"}, [1.0]),
            ("chorale_steps_total", {"slot": "0", "model": "m", "prompt": "a red vase"}, [1.0]),
            ("chorale_rank_resident_bytes", {"slot": "0", "pid": "17"}, [1.0]),
        ],
        os.getpid(),
    )
    assert shown(exporter).keys() == before


def test_restarts_begin_at_nothing_so_that_the_first_is_seen() -> None:
    exporter = MetricsExporter("n1", "cpu")
    assert value(exporter, "chorale_group_restarts_total", node="n1", reason="lost") == 0
    exporter.count_lost("n2")
    assert value(exporter, "chorale_group_restarts_total", node="n2", reason="lost") == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("9464", ("127.0.0.1", 9464)),
        ("[::1]:80", ("::1", 80)),
        ("node-1:0", ("node-1", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", ":9464", "host:70000", "host:-1", "host:x", "host:٣"])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(BadSetting, match=r"metrics_address: .* use e\.g\. 0\.0\.0\.0:9464"):
        parse_address(text)


def test_a_taken_port_is_told_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BadSetting, match=f"metrics_address: {address} is not available") as caught:
            MetricsExporter("n1", "cpu").serve(address)
    assert "\n" not in str(caught.value)


def test_series_are_listed_once() -> None:
    listed = [series.name for series in every_series()]
    assert len(listed) == len(set(listed))
