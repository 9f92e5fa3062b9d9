"""Unfinished work of other numerics, and of version 0.1.0, is started again and not continued."""

from __future__ import annotations

import pytest
import torch

from render.canvas import Canvas
from render.denoise.checkpoint import Checkpoint, CheckpointUnusable, identity_of
from render.numerics import NUMERICS, same_numerics
from render.output.block_journal import BlockJournal
from render.rect import Rect
from tests.support.sinks import MemorySink

IDENTITY = identity_of("digest", torch.device("cpu"))
PREVIOUS = f"digest cpu torch-{torch.__version__} chorale-0.1.0"


def test_the_identity_names_the_numerics_and_no_release() -> None:
    assert f"digest cpu torch-{torch.__version__} numerics-{NUMERICS}" == IDENTITY


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (IDENTITY, IDENTITY, True),
        (PREVIOUS, IDENTITY, False),
        (PREVIOUS.replace("cpu", "cuda"), IDENTITY, False),
        (IDENTITY.replace(f"numerics-{NUMERICS}", "numerics-1"), IDENTITY, False),
        (IDENTITY, IDENTITY.replace(f"numerics-{NUMERICS}", "numerics-99"), False),
        (None, IDENTITY, False),
    ],
)
def test_only_work_of_the_same_numerics_is_resumed(found: object, expected: str, same: bool) -> None:
    assert same_numerics(found, expected) is same


@pytest.mark.parametrize(("written", "accepted"), [(IDENTITY, True), (PREVIOUS, False)])
def test_checkpoints_and_blocks_of_the_previous_release(written: str, accepted: bool) -> None:
    area = Rect(y=0, x=0, height=8, width=8)
    checkpoint = Checkpoint(stage=1, canvas=Canvas(step=2, planes=torch.ones((1, 4, 8, 8)), area=area))
    if accepted:
        found = Checkpoint.unpack(checkpoint.pack(written), IDENTITY)
        assert found.stage == 1 and torch.equal(found.canvas.planes, checkpoint.canvas.planes)
    else:
        with pytest.raises(CheckpointUnusable, match="another version"):
            Checkpoint.unpack(checkpoint.pack(written), IDENTITY)
    sink = MemorySink()
    BlockJournal(sink, written).save(area, {}, b"measured")
    assert BlockJournal(sink, IDENTITY).load(area) == (({}, b"measured") if accepted else None)
