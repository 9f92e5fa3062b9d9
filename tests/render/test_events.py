"""Events are unchanged by the socket between ranks and their group, and anything else is refused."""

from __future__ import annotations

import pytest

from render.events import (
    CheckpointSaved,
    EpochBegan,
    Event,
    FirstNodeLost,
    ImageDone,
    ModelLoaded,
    NodeLost,
    RankFailed,
    RankLeft,
    RankStarted,
    RankStopped,
    StageStarted,
    StepDone,
    StepTimed,
    TilesWritten,
    from_json,
)

PHASES = {"model": 0.5, "wait": 0.25}
EVENTS = (
    RankStarted(rank=1, pid=7),
    EpochBegan(epoch=2, ranks=3, seconds=0.1),
    RankLeft(rank=3, local_rank=2, asked=False, text="it was ended by SIGKILL"),
    NodeLost(node=1),
    FirstNodeLost(),
    ModelLoaded(seconds=1.5),
    StageStarted(stage=0, stages=2, width=512, height=256, steps=20),
    StepDone(
        rank=2,
        stage=1,
        step=3,
        steps=20,
        timestep=941.0,
        seconds=0.75,
        phases=PHASES,
        exchange_seconds=0.1,
        model_calls=4,
        border_bytes=4096,
    ),
    StepTimed(rank=3, stage=1, step=3, phases=PHASES),
    CheckpointSaved(stage=1, step=3, bytes=0, seconds=0.1, error="the disk is full"),
    TilesWritten(blocks_done=1, blocks_total=4, pixels=65536, phases=PHASES),
    ImageDone(digest="d", root="r", seconds=9.0, phases=PHASES),
    RankStopped(rank=1, text="stopped"),
    RankFailed(rank=1, code=2, text="width", outage=False, bad_input=("width", "7", "is odd")),
    RankFailed(rank=1, code=6, text="away", outage=True),
    RankFailed(rank=1, code=3, text="no memory", outage=False, added=True),
    RankFailed(rank=1, code=3, text="not finite", outage=False, permanent=True),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_an_event_is_unchanged_by_json(event: Event) -> None:
    assert from_json(event.to_json()) == event


def test_each_class_has_its_own_kind() -> None:
    classes = Event.__subclasses__()
    assert {type(event) for event in EVENTS} == set(classes)
    assert len({each.kind for each in classes}) == len(classes)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "no"}', '{"kind": "rank_started", "id": 1}'])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(text)
