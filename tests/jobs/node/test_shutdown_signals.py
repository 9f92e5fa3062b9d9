"""When SIGTERM lets the ranks finish their step, and when there is nothing to wait for."""

from __future__ import annotations

import os
import signal

import pytest

from jobs.node.shutdown_signals import CHECKPOINT_S, ShutdownSignals
from render.errors import Cancelled
from render.events import Event, StageStarted, StepDone, TilesWritten


def stage(number: int = 0) -> Event:
    return StageStarted(stage=number, stages=2, width=8, height=8, steps=3)


def step(number: int, stage: int = 0) -> Event:
    return StepDone(
        stage=stage,
        step=number,
        steps=3,
        timestep=0.0,
        seconds=1.0,
        phases={},
        exchange_seconds=0.0,
        border_bytes=0,
        model_calls=1,
    )


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def after(*events: Event) -> ShutdownSignals:
    signals = ShutdownSignals()
    for event in events:
        signals.on_event(event)
    return signals


@pytest.mark.parametrize(
    "events",
    [
        (),
        (stage(1), step(3, stage=1)),
        (stage(1), step(3, stage=1), TilesWritten(blocks_done=1, blocks_total=9, pixels=1, phases={})),
    ],
    ids=["before the first step", "after the last step", "while tiles are written"],
)
def test_there_is_nothing_to_wait_for(events: tuple[Event, ...]) -> None:
    signals = after(*events)
    with signals.installed(), pytest.raises(Cancelled):
        terminate()


@pytest.mark.parametrize(
    "events", [(stage(),), (stage(), step(1)), (stage(), step(3)), (stage(1), step(2, stage=1))]
)
def test_the_step_is_finished_first(events: tuple[Event, ...]) -> None:
    signals = after(*events)
    with signals.installed():
        assert not signals.poll()
        terminate()
        assert signals.poll()
        with pytest.raises(Cancelled):
            terminate()


def test_a_checkpoint_that_is_never_stored_is_not_waited_for() -> None:
    now = [0.0]
    signals = ShutdownSignals(clock=lambda: now[0])
    signals.on_event(stage())
    with signals.installed():
        terminate()
        now[0] = 10_000.0
        assert signals.poll(), "a step takes as long as it takes"
        signals.on_event(step(1))
        now[0] += CHECKPOINT_S / 2
        assert signals.poll()
        now[0] += CHECKPOINT_S
        with pytest.raises(Cancelled):
            signals.poll()
