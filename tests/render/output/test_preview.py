"""Previews while an image is rendered: rank 0 writes one per finished stage and deletes it at the end."""

import io
import time

import pytest
import torch
from PIL import Image

from render.denoise.checkpoint import CheckpointManager
from render.distributed import SingleRankGroup
from render.engine import render_image
from render.errors import GroupChanges, RanksLost, RenderError
from render.events import Event, StepDone
from render.sink import UNFINISHED_PREVIEW
from render.spec import Spec
from tests.support.groups import ThreadGroup, run_ranks
from tests.support.models import ToyModel
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")
SPEC = Spec(prompt="a red vase", width=448, height=320, steps=3, tile_size=64)


class WatchedSink(MemorySink):
    """Records each preview that is put."""

    def __init__(self) -> None:
        super().__init__()
        self.previews: list[bytes] = []

    def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
        super().put(key, data, content_type, immutable)
        if key == UNFINISHED_PREVIEW:
            self.previews.append(data)


def render(ranks: int, sink: MemorySink) -> str:
    def work(group: ThreadGroup) -> str:
        checkpoints = CheckpointManager(sink, SPEC.digest("toy"), CPU, every_s=1e9)
        return render_image(SPEC, ToyModel(), group, sink, device=CPU, checkpoints=checkpoints).root

    (root,) = set(run_ranks(ranks, work))
    return root


@pytest.mark.parametrize("ranks", [1, 3])
def test_each_stage_has_a_preview_that_is_deleted_at_the_end(ranks: int) -> None:
    sink = WatchedSink()
    root = render(ranks, sink)
    sizes = [Image.open(io.BytesIO(data)).size for data in sink.previews]
    assert sizes and sizes == sorted(sizes) and all(width < SPEC.width for width, _ in sizes)
    assert not any(key.startswith("work/") for key in sink.files)
    assert root == render(1, MemorySink())


def test_previews_do_not_depend_on_the_number_of_ranks() -> None:
    alone, together = WatchedSink(), WatchedSink()
    render(1, alone)
    render(3, together)
    assert alone.previews[0] == together.previews[0]


def test_a_failing_preview_does_not_stop_the_render() -> None:
    class Refusing(MemorySink):
        def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
            if key == UNFINISHED_PREVIEW:
                raise OSError("no room")
            super().put(key, data, content_type, immutable)

    assert render(2, Refusing()) == render(1, MemorySink())


@pytest.mark.parametrize("error", [GroupChanges, RanksLost])
def test_none_is_stored_any_more_once_a_group_has_ended(error: type[RenderError]) -> None:
    begun, stored = [], []

    class Slow(MemorySink):
        def put(self, key: str, data: bytes, content_type: str, immutable: bool = False) -> None:
            if key == UNFINISHED_PREVIEW:
                begun.append(key)
                time.sleep(0.3)
                stored.append(key)
            super().put(key, data, content_type, immutable)

    def end(event: Event) -> None:
        if isinstance(event, StepDone) and event.stage:
            raise error("the group has ended")

    sink = Slow()
    checkpoints = CheckpointManager(sink, SPEC.digest("toy"), CPU, every_s=1e9)
    with pytest.raises(error):
        render_image(
            SPEC, ToyModel(), SingleRankGroup(), sink, device=CPU, on_event=end, checkpoints=checkpoints
        )
    assert begun and stored == begun
