"""What ranks measure: taken from the engine's own events, sent without waiting, counted right."""

from __future__ import annotations

import json
import socket
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import StoreRetryable
from infra.store.instrumented import InstrumentedStore
from jobs.node.metrics_client import MetricsClient, metrics_path
from jobs.node.rank_metrics import RankMetrics, model_label
from render.denoise.checkpoint import CheckpointManager
from render.engine import render_image
from render.events import CheckpointSaved, Event, StepDone
from render.launch.event_channel import DatagramReceiver
from render.launch.observer import RankContext
from render.spec import Spec
from tests.support.groups import ThreadGroup, run_ranks
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
SPEC = Spec(prompt="a red vase", width=448, height=320, steps=6, seed=3, tile_size=64)
RANKS = 2


class Received:
    """Everything that came to a socket: the sum of each series' values, and how many there were."""

    def __init__(self, receiver: DatagramReceiver) -> None:
        self._receiver = receiver
        self.sums: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        self.counts: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)

    def drain(self) -> Received:
        while (message := self._receiver.receive(0.05)) is not None:
            for name, labels, values in json.loads(message)["measures"]:
                key = name, tuple(labels.values())
                self.sums[key] += sum(values)
                self.counts[key] += len(values)
        return self

    def sum(self, name: str) -> float:
        """Over all labels."""
        return sum(value for (other, _), value in self.sums.items() if other == name)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[DatagramReceiver]:
    made = DatagramReceiver(metrics_path(tmp_path))
    yield made
    made.close()


def rank_metrics(client: MetricsClient, rank: int, model: str) -> RankMetrics:
    context = RankContext(rank=rank, slot=rank, model=model, device_memory=dict)
    return RankMetrics(client=client, context=context)


def measured_render(receiver: DatagramReceiver) -> tuple[dict[str, Any], Received, list[Event]]:
    """A real render with ranks as threads: its manifest, what was received, and rank 0's events."""
    sink, events = MemorySink(), list[Event]()
    received = Received(receiver)

    def work(group: ThreadGroup) -> tuple[dict[str, Any], MetricsClient]:
        client = MetricsClient(str(receiver.path))
        metrics = rank_metrics(client, group.rank, "toy")
        store = InstrumentedStore(sink, metrics.on_sink_call)

        def on_event(event: Event) -> None:
            metrics.on_event(replace(event, rank=group.rank))
            if group.rank == 0:
                events.append(event)

        def on_save(result: Any) -> None:
            on_event(CheckpointSaved(stage=0, step=0, bytes=result.bytes, seconds=result.seconds, error=None))

        checkpoints = CheckpointManager(store, "digest", CPU, every_s=0, on_save=on_save)
        return (
            render_image(
                SPEC, ToyModel(), group, store, device=CPU, on_event=on_event, checkpoints=checkpoints
            ).manifest,
            client,
        )

    done = run_ranks(RANKS, work)
    for _, client in done:
        # Two ranks may have filled the socket while nobody received.
        received.drain()
        client.send()
    return done[0][0], received.drain(), events


def test_the_engines_events_become_the_series_that_they_should(receiver: DatagramReceiver) -> None:
    manifest, received, events = measured_render(receiver)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert received.sum("chorale_pixels_total") == SPEC.width * SPEC.height
    assert received.sum("chorale_images_total") == 1
    assert received.sum("chorale_image_seconds") == pytest.approx(manifest.timings["total"], abs=0.001)
    for slot in ("0", "1"):
        assert received.sums["chorale_steps_total", (slot, "toy")] == len(steps)
        assert received.counts["chorale_step_seconds", (slot, "model")] == len(steps)
        assert received.counts["chorale_exchange_seconds", (slot,)] == len(steps)
        assert received.sums["chorale_border_bytes_total", (slot,)] > 0
        assert received.sums["chorale_rank_resident_bytes", (slot,)] > 1e7
    assert received.sums["chorale_model_calls_total", ("0", "toy")] == sum(
        event.model_calls for event in steps
    )
    model = received.sums["chorale_step_seconds", ("0", "model")]
    assert received.sums["chorale_model_seconds_total", ("0", "toy")] == pytest.approx(model)
    for phase in ("model", "wait", "fuse", "decode", "encode", "upload"):
        own = received.sums["chorale_step_seconds", ("0", phase)]
        assert own == pytest.approx(manifest.timings[phase], rel=0.01, abs=0.001), phase
    kept = received.counts["chorale_checkpoint_seconds", ("ok",)]
    assert kept and received.sum("chorale_checkpoint_bytes_total") > kept
    assert received.sum("chorale_store_bytes_total") > sum(tile.bytes for tile in manifest.tiles.values())
    assert received.sums["chorale_store_requests_total", ("put", "ok")] >= len(manifest.tiles)


def test_what_the_socket_has_no_room_for_waits_and_nothing_is_lost(receiver: DatagramReceiver) -> None:
    client, received, count = MetricsClient(str(receiver.path)), Received(receiver), 600
    for number in range(count):
        client.record("chorale_steps_total", slot=0, model="m")
        client.record("chorale_step_seconds", number, slot=0, phase="wait")
        client.send()
    received.drain()
    assert received.counts["chorale_step_seconds", ("0", "wait")] < count, "more than a socket holds"
    client.send()
    received.drain()
    assert received.sums["chorale_steps_total", ("0", "m")] == count
    assert received.counts["chorale_step_seconds", ("0", "wait")] == count
    assert received.sums["chorale_step_seconds", ("0", "wait")] == sum(range(count))


def test_many_values_go_in_several_messages(receiver: DatagramReceiver) -> None:
    client, received, count = MetricsClient(str(receiver.path)), Received(receiver), 4_500
    for number in range(count):
        client.record("chorale_store_seconds", number / 3, operation="put")
    client.send()
    received.drain()
    assert received.counts["chorale_store_seconds", ("put",)] == count
    assert received.sums["chorale_store_seconds", ("put",)] == pytest.approx(sum(range(count)) / 3)


def test_where_nobody_receives_nothing_fails_and_little_is_buffered(tmp_path: Path) -> None:
    client = MetricsClient(str(tmp_path / "nobody"))
    for _ in range(50_000):
        client.record("chorale_store_seconds", 0.1, operation="put")
    client.send(wait=True)
    receiver = DatagramReceiver(tmp_path / "nobody")
    received = Received(receiver)
    while True:
        before = sum(received.counts.values())
        client.send()
        if sum(received.drain().counts.values()) == before:
            break
    receiver.close()
    assert before == 10_000


def test_without_an_agent_no_socket_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHORALE_METRICS_SOCKET", raising=False)
    monkeypatch.setattr(socket, "socket", None)
    client = MetricsClient.from_environment()
    client.record("chorale_steps_total", slot=0, model="m")
    client.send(wait=True)
    assert not client.due()


def test_a_store_that_fails_is_counted_while_it_does(receiver: DatagramReceiver) -> None:
    class Away(MemorySink):
        def get(self, key: str) -> bytes:
            raise StoreRetryable("away")

    metrics = rank_metrics(MetricsClient(str(receiver.path)), 0, "m")
    store = InstrumentedStore(Away(), metrics.on_sink_call)
    with pytest.raises(StoreRetryable):
        store.get("a")
    assert Received(receiver).drain().sums["chorale_store_requests_total", ("get", "retryable")] == 1


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("builtin", "builtin"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("/models/private/portraits", "portraits"),
        ("./portraits", "portraits"),
    ],
)
def test_a_models_label_holds_no_path(model: str, label: str) -> None:
    assert model_label(model) == label
