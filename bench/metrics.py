"""What metrics cost: in a rank's step, in its agent, and at a scrape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.table import Row
from infra.database import Database
from infra.metrics_exporter import MetricsExporter
from jobs.db.schema import upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.farm_metrics import FarmMetrics, read_gauges
from jobs.node.metrics_client import MetricsClient, metrics_path
from jobs.node.rank_metrics import RankMetrics
from render.distributed import SingleRankGroup
from render.engine import render_latents
from render.events import Event, StepDone
from render.launch.device_memory import device_memory
from render.launch.event_channel import DatagramReceiver
from render.launch.observer import RankContext
from render.models import load_adapter
from render.models.folder import read_model_info, resolve_model
from render.spec import Spec

SPEC = Spec(prompt="a red vase", width=128, height=128, steps=200, seed=7)
"""Of native size, so that its steps are the shortest there are, and what comes with each weighs most."""
MANY = 100_000
SCRAPES = 50


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="metrics-") as name:
        return [*_steps(Path(name)), *_scrapes(Path(name))]


class _InTurns:
    """Hands every second step to the metrics; knows what each step and each call took.

    In processor time, of which one thread does all the work: what else the machine does would hide so little.
    """

    def __init__(self, metrics: RankMetrics) -> None:
        self._metrics = metrics
        self._last = time.process_time()
        self.steps: dict[bool, list[float]] = {True: [], False: []}
        """Processor seconds from step to step, by whether they were measured."""
        self.calls: list[float] = []
        """Processor seconds of each call of the metrics, which never wait."""

    def __call__(self, event: Event) -> None:
        if not isinstance(event, StepDone):
            self._metrics.on_event(event)
            return
        measured = event.step % 2 == 0
        if measured:
            started = time.thread_time()
            self._metrics.on_event(event)
            self.calls.append(time.thread_time() - started)
        ended = time.process_time()
        if event.step > 1:
            self.steps[measured].append(ended - self._last)
        self._last = ended


def _steps(folder: Path) -> Iterator[Row]:
    model = resolve_model(SPEC.model)
    device = torch.device("cpu")
    torch.set_num_threads(1)
    adapter = load_adapter(model, device, SPEC.dtype, read_model_info(model))
    with _agent(folder) as (path, cpu_seconds):
        client = MetricsClient(str(path))
        memory = partial(device_memory, device)
        context = RankContext(rank=0, slot=0, model="builtin", device_memory=memory)
        turns = _InTurns(RankMetrics(client=client, context=context))
        before = cpu_seconds()
        render_latents(SPEC, adapter, SingleRankGroup(), device=device, on_event=turns)
        client.send(wait=True)
        agent = (cpu_seconds() - before) / len(turns.calls)
    bare = median(turns.steps[False])
    hook = sum(turns.calls) / len(turns.calls)
    yield Row("a step of a native-size picture, without metrics: ms", bare * 1000, "")
    yield Row("what a rank does for metrics in a step: ms", hook * 1000, "")
    yield Row("the same, per cent of the step", 100 * hook / bare, "<= 0.5")
    yield Row("what its agent does for that, on any core: per cent of the step", 100 * agent / bare, "<= 0.5")
    yield Row("steps with metrics over steps without, in turns", median(turns.steps[True]) / bare, "<= 1.005")


@contextmanager
def _agent(folder: Path) -> Iterator[tuple[Path, Any]]:
    """A process that receives metrics as an agent does: yields its socket and its processor time."""
    process = subprocess.Popen([sys.executable, "-m", "bench.metrics", str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()

    def cpu_seconds() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    try:
        yield metrics_path(folder), cpu_seconds
    finally:
        process.kill()
        process.wait()


def _receive(folder: Path) -> None:
    exporter, receiver = MetricsExporter("n", "cpu"), DatagramReceiver(metrics_path(folder))
    print("receiving", flush=True)
    while True:
        message = receiver.receive(1.0)
        if message is not None:
            values = json.loads(message)
            exporter.record(values["measures"], values["pid"])


def _scrapes(folder: Path) -> Iterator[Row]:
    database = Database(f"sqlite:///{folder / 'farm.db'}")
    upgrade(database)
    specs = (Spec(prompt=f"vase {number}", width=128, height=128) for number in range(MANY))
    asked = (BatchItem(row=number, custom_id=str(number), spec=spec) for number, spec in enumerate(specs))
    submit(database, asked, "many", JobOptions(owner="bench"))
    started = time.perf_counter()
    with database.read() as connection:
        list(read_gauges(connection))
    yield Row(f"a look into the database at {MANY:,} jobs: ms", (time.perf_counter() - started) * 1000, "")
    url, close = MetricsExporter("n", "cpu", FarmMetrics(database)).serve("127.0.0.1:0")

    def scrape() -> float:
        started = time.perf_counter()
        with urllib.request.urlopen(url, timeout=30) as answer:
            answer.read()
        return (time.perf_counter() - started) * 1000

    scrape()
    yield Row(f"a scrape at {MANY:,} jobs: ms", median(scrape() for _ in range(SCRAPES)), "<= 50")
    close()
    database.close()


if __name__ == "__main__":
    _receive(Path(sys.argv[1]))
