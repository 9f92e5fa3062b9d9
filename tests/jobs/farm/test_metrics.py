"""A real Prometheus on a running farm: its figures are those of the manifests and of the kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import ranks_with, wait_until
from tests.support.machines import Machines
from tests.support.services import Prometheus, free_port, prometheus_server

RULES = Path(__file__).parent.parent.parent.parent / "infra" / "prometheus" / "rules"
WIDTH, HEIGHT = 512, 384
IMAGE = ("a red vase", "--size", f"{WIDTH}x{HEIGHT}", "--steps", "6", "--ranks", "2", "--queue", "night")
LONG = ("a blue mug", "--size", "256x256", "--steps", "12", "--strength", "1", "--ranks", "2")
PHASES = ("model", "wait", "fuse")


def the(found: dict[str, float]) -> float:
    (value,) = found.values()
    return value


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def wait_for(prometheus: Prometheus, promql: str, value: float) -> None:
    """Wait until the query has this one value."""
    wait_until(lambda: list(prometheus.ask(promql).values()) == [value], 30)


@pytest.mark.timeout(600)
def test_prometheus_has_the_figures_of_the_manifests(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = {"CHORALE_METRICS_ADDRESS": address, "CHORALE_CHECKPOINT_S": "0.1", "CHORALE_WARM_S": "120"}
    machines = Machines(tmp_path, f"sqlite:///{tmp_path / 'farm.db'}", **settings)
    try:
        machines.boot("n1", slots=2)
        with prometheus_server(tmp_path, [address], RULES) as prometheus:
            rendered = _one_image(machines, prometheus)
            _figures_are_those_of_the_manifest(prometheus, rendered)
            _memory_is_the_kernels_figure(machines, prometheus)
            _counts_outlive_a_killed_group(machines, prometheus)
            assert set(prometheus.rules().values()) == {"ok"}
    finally:
        machines.shut_down()


def _one_image(machines: Machines, prometheus: Prometheus) -> dict[str, Any]:
    """Render it, and wait until Prometheus knows; its manifest."""
    machines.call("submit", *IMAGE)
    folder = machines.wait("done")["folder"]
    wait_for(prometheus, "sum(chorale_images_total)", 1)
    wait_for(prometheus, "sum(chorale_pixels_total)", WIDTH * HEIGHT)
    images = Path(machines.environment["XDG_DATA_HOME"]) / "chorale" / "images"
    manifest: dict[str, Any] = json.loads((images / folder / "manifest.json").read_text())
    return manifest


def _figures_are_those_of_the_manifest(prometheus: Prometheus, manifest: dict[str, Any]) -> None:
    timings = manifest["timings"]
    rate = the(prometheus.ask("sum(chorale_pixels_total) / sum(chorale_image_seconds_sum) / 1e6"))
    assert rate == pytest.approx(WIDTH * HEIGHT / 1e6 / timings["total"], rel=0.1)
    for phase in PHASES:
        spent = the(prometheus.ask(f'chorale_step_seconds_sum{{slot="0", phase="{phase}"}}'))
        assert spent == pytest.approx(timings[phase], rel=0.1, abs=0.002), phase
    steps = the(prometheus.ask('chorale_steps_total{slot="0"}'))
    ours = 'chorale_step_seconds_sum{slot="0", phase=~"model|wait|fuse"}'
    step = the(prometheus.ask(f'sum({ours}) / sum(chorale_steps_total{{slot="0"}})'))
    assert step == pytest.approx(sum(timings[phase] for phase in PHASES) / steps, rel=0.1)
    wait_for(prometheus, "farm:chorale_slots:sum", 2)
    assert the(prometheus.ask("sum(chorale_first_step_seconds_count)")) == 1
    # Its growth was seen, though it is the first of this agent.
    wait_until(lambda: prometheus.ask("node_model:chorale_pixels:rate5m > 0"), 30)


def _memory_is_the_kernels_figure(machines: Machines, prometheus: Prometheus) -> None:
    resident = prometheus.ask("chorale_rank_resident_bytes")
    assert resident.keys() == {f"__name__=chorale_rank_resident_bytes,node=n1,slot={slot}" for slot in (0, 1)}
    kernels = sorted(resident_bytes(pid) for pid in ranks_with(machines.mark))
    assert sorted(resident.values()) == pytest.approx(kernels, rel=0.1)


def _counts_outlive_a_killed_group(machines: Machines, prometheus: Prometheus) -> None:
    before = the(prometheus.ask('chorale_steps_total{slot="0"}'))
    machines.call("submit", *LONG)
    wait_until(machines.checkpoint, 120)
    machines.kill("render.launch.launcher")
    wait_until(lambda: machines.count("done") == 2, 120)
    wait_for(prometheus, "sum(chorale_images_total)", 2)
    wait_for(prometheus, 'sum(chorale_group_restarts_total{reason="broke_off"})', 1)
    wait_for(prometheus, 'max(chorale_jobs_ended{queue="night", outcome="done"})', 1)
    assert the(prometheus.ask("sum(chorale_group_starts_total)")) == 2, "the first one was warm"
    assert the(prometheus.ask("sum(chorale_recovery_seconds_count)")) == 1
    # What a killed rank had not sent yet is lost with it, and nothing else.
    assert the(prometheus.ask('chorale_steps_total{slot="0"}')) > before
    assert set(prometheus.ask("resets(chorale_steps_total[1h])").values()) == {0}
