"""Signals to a render in the foreground: SIGINT ends it, SIGTERM lets it save a checkpoint first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from render.errors import Cancelled
from render.events import Event, StageStarted, TilesWritten


class ShutdownSignals:
    """SIGTERM: a checkpoint after the step, then the end; a second one ends at once, as SIGINT does."""

    def __init__(self) -> None:
        self._stop_requested = self._cancelled = self._stepping = False

    def on_event(self, event: Event) -> None:
        """Learn from the ranks' events whether there are steps to stop between."""
        if isinstance(event, StageStarted):
            self._stepping = True
        elif isinstance(event, TilesWritten):
            self._stepping = False

    def poll(self) -> bool:
        """Whether the ranks should stop after their step. Raises `Cancelled` where there is nothing to wait
        for: before the first step, and when what is left are tiles, each of which is stored by itself."""
        if self._stop_requested and not self._stepping:
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
        if self._stop_requested:
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
