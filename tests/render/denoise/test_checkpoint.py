"""Checkpoints: any number of ranks continues from one, to the bits of an undisturbed render."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from render.canvas import Canvas
from render.denoise.checkpoint import KEY, Checkpoint, CheckpointManager
from render.distributed import Group, SingleRankGroup
from render.engine import render_image
from render.errors import Stopped
from render.events import Event, OnEvent, StepDone
from render.plan.geometry import Rect
from render.spec import BLENDS, SAMPLERS, Spec
from tests.support.groups import ThreadGroup, run_ranks
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
SPEC = Spec(prompt="a red vase", width=448, height=320, steps=6, seed=3, tile_size=64)


class Ranks:
    """Renders one spec into one sink, again and again, with any number of ranks."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.sink = spec, MemorySink()
        self.events: list[Event] = []

    @property
    def steps(self) -> int:
        """Steps that were computed since the last call of `render`."""
        return sum(isinstance(event, StepDone) for event in self.events)

    def render(self, ranks: int, *, stop_after: int | None = None, every_s: float = 1e9) -> str | None:
        """The image's root; None if all ranks stopped after `stop_after` steps, because the last rank did."""
        self.events = []

        def work(group: ThreadGroup) -> str | None:
            seen: list[Event] = []

            def on_event(event: Event) -> None:
                seen.append(event)
                if group.rank == 0:
                    self.events.append(event)

            def stop() -> bool:
                steps = sum(isinstance(event, StepDone) for event in seen)
                return stop_after is not None and group.rank == ranks - 1 and steps + 1 >= stop_after

            return _render(self.spec, group, self.sink, every_s, stop, on_event)

        roots = set(run_ranks(ranks, work))
        assert len(roots) == 1, "the ranks agree"
        return roots.pop()


def _render(
    spec: Spec, group: Group, sink: MemorySink, every_s: float, stop: Any, on_event: OnEvent
) -> str | None:
    checkpoints = CheckpointManager(sink, spec.digest("toy"), CPU, every_s=every_s, stop=stop)
    try:
        report = render_image(
            spec, ToyModel(), group, sink, device=CPU, on_event=on_event, checkpoints=checkpoints
        )
    except Stopped:
        return None
    return report.root


def root_of(spec: Spec) -> str:
    return render_image(spec, ToyModel(), SingleRankGroup(), MemorySink(), device=CPU).root


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("ranks", [(1, 3), (3, 2)])
def test_a_stopped_render_continues_with_other_ranks(
    blend: str, sampler: str, ranks: tuple[int, int]
) -> None:
    spec = replace(SPEC, blend=blend, sampler=sampler)
    image = Ranks(spec)
    assert image.render(ranks[0], stop_after=8) is None
    assert image.steps == 8
    assert KEY in image.sink.files and "manifest.json" not in image.sink.files
    assert image.render(ranks[1]) == root_of(spec)


def test_a_checkpoint_has_the_reference_planes() -> None:
    spec = replace(SPEC, skip_residual=0.6, sampler="dpmpp-2m")
    image = Ranks(spec)
    assert image.render(2, stop_after=8) is None
    assert image.render(3) == root_of(spec)
    assert root_of(spec) != root_of(replace(spec, skip_residual=0.0))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), max_size=4), st.integers(1, 4))
def test_no_step_is_computed_twice_however_often_a_render_stops(
    stops: list[tuple[int, int]], last: int
) -> None:
    image = Ranks(SPEC)
    computed = 0
    for ranks, steps in stops:
        if image.render(ranks, stop_after=steps) is not None:
            return  # It was shorter than the stops.
        computed += image.steps
    assert image.render(last) == root_of(SPEC)
    whole = Ranks(SPEC)
    whole.render(1)
    assert computed + image.steps == whole.steps


def test_a_finished_image_leaves_no_unfinished_work_in_the_sink() -> None:
    image = Ranks(SPEC)
    image.render(2, every_s=0)
    assert not [key for key in image.sink.files if key.startswith("work/")]


@pytest.mark.parametrize("harm", ["cut", "flip", "junk", "other"])
def test_a_damaged_checkpoint_is_ignored(harm: str) -> None:
    image = Ranks(SPEC)
    image.render(2, stop_after=3)
    data = image.sink.files[KEY]
    image.sink.files[KEY] = {
        "cut": data[: len(data) // 2],
        "flip": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "junk": b"junk",
        "other": data.replace(SPEC.digest("toy").encode(), b"0" * 64),
    }[harm]
    assert image.render(2) == root_of(SPEC)
    undisturbed = Ranks(SPEC)
    undisturbed.render(1)
    assert image.steps == undisturbed.steps


def test_a_render_continues_when_a_checkpoint_cannot_be_saved() -> None:
    class Full(MemorySink):
        def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
            if key == KEY:
                raise OSError("the disk is full")
            super().put(key, data, content_type, immutable)

    errors: list[Exception | None] = []
    checkpoints = CheckpointManager(
        Full(), "digest", CPU, every_s=0, on_save=lambda result: errors.append(result.error)
    )
    report = render_image(SPEC, ToyModel(), SingleRankGroup(), Full(), device=CPU, checkpoints=checkpoints)
    assert report.root == root_of(SPEC)
    assert errors and all(isinstance(error, OSError) for error in errors)


def test_a_canvas_is_the_same_to_the_bit_after_packing() -> None:
    planes = torch.randn((3, 4, 8, 6))
    planes[0, 0, 0, 0] = -0.0
    canvas = Canvas(step=5, planes=planes, area=Rect(y=0, x=0, height=8, width=6), history=1)
    again = Checkpoint.unpack(Checkpoint(stage=2, canvas=canvas).pack("d"), "d")
    assert (again.stage, again.canvas.step, again.canvas.history) == (2, 5, 1)
    assert again.canvas.planes.numpy().tobytes() == planes.numpy().tobytes()


def test_the_names_in_a_checkpoint_are_those_of_version_0_1() -> None:
    """A farm is updated in the middle of an image: the old names stay, so the new version continues."""
    canvas = Canvas(
        step=5,
        planes=torch.randn((3, 4, 8, 6)),
        area=Rect(y=0, x=0, height=8, width=6),
        has_reference=True,
        hook_state=torch.ones(3, dtype=torch.float16),
    )
    data = Checkpoint(stage=2, canvas=canvas).pack("d")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(header) == {"__metadata__", "planes", "said"}
    info = json.loads(header["__metadata__"]["chorale"])
    assert list(info) == ["identity", "stage", "step", "heard", "anchored", "sha256", "seal"]
    again = Checkpoint.unpack(data, "d")
    assert again.canvas.has_reference and again.canvas.hook_state is not None
    assert torch.equal(again.canvas.hook_state, torch.ones(3, dtype=torch.float16))


def test_stored_blocks_are_not_decoded_again() -> None:
    class Breaks(MemorySink):
        """Fails once most tiles are stored."""

        broken = True

        def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
            if self.broken and len(self.files) > 200:
                raise OSError("the store is down")
            super().put(key, data, content_type, immutable)

    spec = replace(SPEC, width=1024, height=1024, steps=1)
    sink = Breaks()

    class Counting(ToyModel):
        decodes = 0

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            self.decodes += 1
            return super().decode(latents)

    def render(model: Counting) -> str:
        checkpoints = CheckpointManager(sink, spec.digest("toy"), CPU, every_s=0)
        return render_image(spec, model, SingleRankGroup(), sink, device=CPU, checkpoints=checkpoints).root

    with pytest.raises(OSError, match="down"):
        render(Counting())
    recorded = [key for key in sink.files if key.startswith("work/block")]
    assert recorded
    sink.broken = False
    first, again = Counting(), Counting()
    resumed = render(again)
    alone = render_image(spec, first, SingleRankGroup(), MemorySink(), device=CPU)
    assert resumed == alone.root
    assert again.decodes < first.decodes
    assert not [key for key in sink.files if key.startswith("work/")]
