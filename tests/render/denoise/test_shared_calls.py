"""Images that share model calls have the roots of images alone, and leave each other in peace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from render.denoise.checkpoint import CheckpointManager
from render.denoise.model_calls import ModelCalls
from render.denoise.shared_calls import SharedCalls
from render.distributed import SingleRankGroup
from render.engine import render_image
from render.errors import RenderFailed, Stopped
from render.events import Event, ImageDone, StepDone
from render.models import Adapter, load_adapter, read_model_info, resolve_model
from render.models.joined_calls import CallJoiner
from render.spec import Spec
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
KINDS: list[dict[str, Any]] = [
    {"prompt": "a red vase"},
    {"prompt": "a bowl", "seed": 4, "steps": 2, "sampler": "euler"},
    {"prompt": "a cup", "seed": 5, "guidance_scale": 1.0},
    {"prompt": "a jug", "seed": 6, "width": 160, "format": "webp"},
    {"prompt": "a green vase", "seed": 7, "steps": 4, "window_batch": 4},
    {"prompt": "a black vase", "seed": 9, "window_batch": 4},
    {"prompt": "a lamp", "seed": 8, "width": 256, "strength": 0.5},
]


@pytest.fixture(scope="module")
def builtin() -> Adapter:
    torch.set_num_threads(1)
    folder = resolve_model("builtin")
    return load_adapter(folder, CPU, "float32", read_model_info(folder))


def spec_of(values: dict[str, Any]) -> Spec:
    return Spec.from_mapping({"width": 128, "height": 128, "steps": 3, "tile_size": 128} | values)


def root_of(
    spec: Spec,
    adapter: Adapter,
    calls: ModelCalls | None = None,
    sink: MemorySink | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] | None = None,
) -> str:
    sink = sink or MemorySink()
    checkpoints = (
        None
        if stop is None
        else CheckpointManager(sink, spec.digest(adapter.info.digest), CPU, every_s=60.0, stop=stop)
    )
    report = render_image(
        spec,
        adapter,
        SingleRankGroup(),
        sink,
        device=CPU,
        calls=calls,
        on_event=on_event,
        checkpoints=checkpoints,
    )
    return report.root


@pytest.fixture(scope="module")
def alone(builtin: Adapter) -> list[str]:
    return [root_of(spec_of(values), builtin) for values in KINDS]


@pytest.mark.parametrize("at_once", [2, 4])
def test_roots_are_those_of_images_alone(at_once: int, builtin: Adapter, alone: list[str]) -> None:
    events: dict[int, list[Event]] = {}

    def render(number: int) -> Callable[[ModelCalls], str]:
        spec, mine = spec_of(KINDS[number]), events.setdefault(number, [])
        return lambda calls: root_of(spec, builtin, calls, on_event=mine.append)

    found = dict(SharedCalls(CallJoiner(builtin), at_once).run(map(render, range(len(KINDS)))))
    assert found == dict(enumerate(alone))
    for number, mine in events.items():
        steps = [event.step for event in mine if isinstance(event, StepDone) and event.stage == 0]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) == spec_of(KINDS[number]).steps
        assert [event.root for event in mine if isinstance(event, ImageDone)] == [alone[number]]


def test_what_one_image_raises_leaves_the_others(builtin: Adapter, alone: list[str]) -> None:
    def poisoned(calls: ModelCalls) -> str:
        def on_event(event: Event) -> None:
            if isinstance(event, StepDone):
                raise RenderFailed("poison")

        return root_of(spec_of(KINDS[1]), builtin, calls, on_event=on_event)

    def healthy(number: int) -> Callable[[ModelCalls], str]:
        return lambda calls: root_of(spec_of(KINDS[number]), builtin, calls)

    found = dict(SharedCalls(CallJoiner(builtin), 3).run([healthy(0), poisoned, healthy(2)]))
    assert (found[0], found[2]) == (alone[0], alone[2])
    assert isinstance(found[1], RenderFailed)


def test_one_image_stops_with_its_own_checkpoint_and_goes_on_later(
    builtin: Adapter, alone: list[str]
) -> None:
    sink, steps = MemorySink(), list[Event]()
    spec, shared = spec_of(KINDS[4]), SharedCalls(CallJoiner(builtin), 2)

    def stopped(calls: ModelCalls) -> str:
        return root_of(spec, builtin, calls, sink, steps.append, stop=lambda: len(steps) > 2)

    def other(calls: ModelCalls) -> str:
        return root_of(spec_of(KINDS[0]), builtin, calls)

    found = dict(shared.run([stopped, other]))
    assert isinstance(found[0], Stopped) and found[1] == alone[0]
    resumed: list[Event] = []
    again = dict(
        shared.run(
            [lambda calls: root_of(spec, builtin, calls, sink, resumed.append, stop=lambda: False), other]
        )
    )
    assert again == {0: alone[4], 1: alone[0]}
    assert 0 < len([event for event in resumed if isinstance(event, StepDone)]) < spec.steps


def test_images_join_as_others_leave_and_are_never_more_than_allowed(builtin: Adapter) -> None:
    running, most = 0, 0

    def renders() -> Iterator[Callable[[ModelCalls], None]]:
        nonlocal running, most
        for _ in range(5):
            running += 1
            most = max(most, running)
            yield lambda calls: None

    for _number, _result in SharedCalls(CallJoiner(builtin), 2).run(renders()):
        running -= 1
    assert (running, most) == (0, 2)


def test_an_interrupt_ends_all_images(builtin: Adapter) -> None:
    ended = []

    def interrupted(calls: ModelCalls) -> str:
        raise KeyboardInterrupt

    def other(calls: ModelCalls) -> str:
        try:
            return root_of(spec_of(KINDS[0]), builtin, calls)
        finally:
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        list(SharedCalls(CallJoiner(builtin), 2).run([other, interrupted]))
    assert ended == [True]
