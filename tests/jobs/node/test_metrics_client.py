"""What ranks measure: told by the engine's own news, sent without waiting, counted right."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterator
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
from render.launch.event_channel import EventReceiver
from render.spec import Spec
from tests.support.groups import ThreadGroup, run_ranks
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
SPEC = Spec(prompt="a red vase", width=448, height=320, steps=6, seed=3, tile_size=64)
RANKS = 2


class Context:
    """Everything that came to a socket: the sum of each series' values, and how many there were."""

    def __init__(self, desk: EventReceiver) -> None:
        self._desk = desk
        self.sums: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        self.counts: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)

    def listen(self) -> Context:
        while (told := self._desk.next(0.05)) is not None:
            for name, labels, values in told["measures"]:
                key = name, tuple(labels.values())
                self.sums[key] += sum(values)
                self.counts[key] += len(values)
        return self

    def sum(self, name: str) -> float:
        """Over all labels."""
        return sum(value for (other, _), value in self.sums.items() if other == name)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[EventReceiver]:
    made = EventReceiver(metrics_path(tmp_path))
    yield made
    made.close()


def measured_render(desk: EventReceiver) -> tuple[dict[str, Any], Context, list[dict[str, Any]]]:
    """A real render with ranks as threads: its manifest, what was heard, and rank 0's news."""
    sink, news = MemorySink(), list[dict[str, Any]]()
    heard = Context(desk)

    def work(group: ThreadGroup) -> tuple[dict[str, Any], MetricsClient]:
        meter = MetricsClient(str(desk.path))
        hear = RankMetrics(meter=meter, slot=group.rank, model="toy", rank=group.rank, memory=dict)
        store = InstrumentedStore(sink, hear.on_request)

        def say(told: dict[str, Any]) -> None:
            hear(told)
            if group.rank == 0:
                news.append(told)

        def on_kept(kept: Any) -> None:
            say({"kind": "checkpoint", "bytes": kept.bytes, "seconds": kept.seconds, "error": kept.error})

        checkpoints = CheckpointManager(store, "digest", CPU, every_s=0, on_kept=on_kept)
        return (
            render_image(
                SPEC, ToyModel(), group, store, device=CPU, on_event=say, checkpoints=checkpoints
            ).manifest,
            meter,
        )

    done = run_ranks(RANKS, work)
    for _, meter in done:
        # Two ranks may have filled the socket while nobody listened.
        heard.listen()
        meter.send()
    return done[0][0], heard.listen(), news


def test_the_engines_news_become_the_series_that_they_should(desk: EventReceiver) -> None:
    manifest, heard, news = measured_render(desk)
    steps = [told for told in news if told["kind"] == "step"]
    assert heard.sum("chorale_pixels_total") == SPEC.width * SPEC.height
    assert heard.sum("chorale_images_total") == 1
    assert heard.sum("chorale_image_seconds") == pytest.approx(manifest["timings"]["total"], abs=0.001)
    for slot in ("0", "1"):
        assert heard.sums["chorale_steps_total", (slot, "toy")] == len(steps)
        assert heard.counts["chorale_step_seconds", (slot, "model")] == len(steps)
        assert heard.counts["chorale_exchange_seconds", (slot,)] == len(steps)
        assert heard.sums["chorale_border_bytes_total", (slot,)] > 0
        assert heard.sums["chorale_rank_resident_bytes", (slot,)] > 1e7
    assert heard.sums["chorale_model_calls_total", ("0", "toy")] == sum(told["calls"] for told in steps)
    model = heard.sums["chorale_step_seconds", ("0", "model")]
    assert heard.sums["chorale_model_seconds_total", ("0", "toy")] == pytest.approx(model)
    for phase in ("model", "wait", "fuse", "decode", "encode", "upload"):
        own = heard.sums["chorale_step_seconds", ("0", phase)]
        assert own == pytest.approx(manifest["timings"][phase], rel=0.01, abs=0.001), phase
    kept = heard.counts["chorale_checkpoint_seconds", ("ok",)]
    assert kept and heard.sum("chorale_checkpoint_bytes_total") > kept
    assert heard.sum("chorale_store_bytes_total") > sum(tile["bytes"] for tile in manifest["tiles"].values())
    assert heard.sums["chorale_store_requests_total", ("put", "ok")] >= len(manifest["tiles"])


def test_what_the_socket_has_no_room_for_waits_and_nothing_is_lost(desk: EventReceiver) -> None:
    meter, heard, told = MetricsClient(str(desk.path)), Context(desk), 600
    for number in range(told):
        meter.tell("chorale_steps_total", slot=0, model="m")
        meter.tell("chorale_step_seconds", number, slot=0, phase="wait")
        meter.send()
    heard.listen()
    assert heard.counts["chorale_step_seconds", ("0", "wait")] < told, "more than a socket holds"
    meter.send()
    heard.listen()
    assert heard.sums["chorale_steps_total", ("0", "m")] == told
    assert heard.counts["chorale_step_seconds", ("0", "wait")] == told
    assert heard.sums["chorale_step_seconds", ("0", "wait")] == sum(range(told))


def test_many_values_go_in_several_messages(desk: EventReceiver) -> None:
    meter, heard, told = MetricsClient(str(desk.path)), Context(desk), 4_500
    for number in range(told):
        meter.tell("chorale_store_seconds", number / 3, operation="put")
    meter.send()
    heard.listen()
    assert heard.counts["chorale_store_seconds", ("put",)] == told
    assert heard.sums["chorale_store_seconds", ("put",)] == pytest.approx(sum(range(told)) / 3)


def test_where_nobody_listens_nothing_fails_and_little_is_kept(tmp_path: Path) -> None:
    meter = MetricsClient(str(tmp_path / "nobody"))
    for _ in range(50_000):
        meter.tell("chorale_store_seconds", 0.1, operation="put")
    meter.send(insist=True)
    desk = EventReceiver(tmp_path / "nobody")
    heard = Context(desk)
    while True:
        before = sum(heard.counts.values())
        meter.send()
        if sum(heard.listen().counts.values()) == before:
            break
    desk.close()
    assert before == 10_000


def test_without_an_agent_no_socket_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHORALE_METRICS_SOCKET", raising=False)
    monkeypatch.setattr(socket, "socket", None)
    meter = MetricsClient.from_environment()
    meter.tell("chorale_steps_total", slot=0, model="m")
    meter.send(insist=True)
    assert not meter.due()


def test_a_store_that_fails_is_told_while_it_does(desk: EventReceiver) -> None:
    class Away(MemorySink):
        def get(self, key: str) -> bytes:
            raise StoreRetryable("away")

    hear = RankMetrics(meter=MetricsClient(str(desk.path)), slot=0, model="m", rank=0, memory=dict)
    store = InstrumentedStore(Away(), hear.on_request)
    with pytest.raises(StoreRetryable):
        store.get("a")
    assert Context(desk).listen().sums["chorale_store_requests_total", ("get", "retryable")] == 1


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
