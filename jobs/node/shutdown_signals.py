"""Signals to a render in the foreground: SIGINT ends it, SIGTERM lets it save a checkpoint first."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

from render.errors import Cancelled
from render.events import CheckpointSaved, Event, StageStarted, StepDone, TilesWritten

CHECKPOINT_S = 15.0
"""After SIGTERM and the end of the step, a checkpoint may take so long; the store may not answer."""


class ShutdownSignals:
    """SIGTERM: a checkpoint after the step, then the end; a second one ends at once, as SIGINT does.

    Where there is nothing to wait for, it ends at once: before the first step, and after the last one, since
    what is left then are tiles, each of which is stored by itself.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop_requested = self._cancelled = self._stepping = False
        self._clock = clock
        self._stages = 0
        self._gives_up_at: float | None = None

    def on_event(self, event: Event) -> None:
        """Learn from the ranks' events whether there are steps to stop between."""
        match event:
            case StageStarted():
                self._stepping, self._stages = True, event.stages
            case StepDone():
                last = event.stage + 1 >= self._stages and event.step >= event.steps
                self._stepping = not last
                if self._stop_requested and self._gives_up_at is None:
                    self._gives_up_at = self._clock() + CHECKPOINT_S
            case TilesWritten():
                self._stepping = False
            case CheckpointSaved() if self._stop_requested:
                # The ranks end now, which takes moments.
                self._gives_up_at = self._clock() + CHECKPOINT_S

    def poll(self) -> bool:
        """Whether the ranks should stop after their step. Raises `Cancelled` where there is nothing to wait
        for, or nothing has come of it for too long."""
        late = self._gives_up_at is not None and self._clock() > self._gives_up_at
        if self._stop_requested and (late or not self._stepping):
            raise _cancelled()
        return self._stop_requested

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The signal handlers are installed for as long as the block lasts."""
        handlers = {signal.SIGINT: self._cancel, signal.SIGTERM: self._request_stop}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request_stop(self, *signal_and_frame: object) -> None:
        # A loop that polls would notice; what waits for a store would not.
        if self._stop_requested or not self._stepping:
            self._cancel()
        self._stop_requested = True

    def _cancel(self, *signal_and_frame: object) -> None:
        # Once only: another signal while the ranks are being ended changes nothing.
        if not self._cancelled:
            self._cancelled = True
            raise _cancelled()


def _cancelled() -> Cancelled:
    return Cancelled(
        "cancelled; nothing was published, and the same command resumes from the last checkpoint"
    )
