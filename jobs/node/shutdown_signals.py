"""What signals ask of a render in the foreground: SIGINT ends it, SIGTERM lets it keep what it has first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from jobs.errors import JobCancelled


class ShutdownSignals:
    """SIGTERM: a checkpoint after the step, then the end; a second one ends at once, as SIGINT does."""

    def __init__(self) -> None:
        self._asked = self._ended = self._stepping = False

    def hear(self, news: dict[str, Any]) -> None:
        """Learn from the ranks' news whether there are steps to stop between."""
        if news["kind"] == "stage":
            self._stepping = True
        elif news["kind"] == "tiles":
            self._stepping = False

    def tick(self) -> bool:
        """Should the ranks stop after their step? Raises `JobCancelled` where there is nothing to wait for:
        before the first step, and when what is left are tiles, each of which is kept by itself."""
        if self._asked and not self._stepping:
            raise _cancelled()
        return self._asked

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Signals are taken for as long as the block lasts."""
        handlers = {signal.SIGINT: self._end, signal.SIGTERM: self._ask}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, *signal_and_frame: object) -> None:
        if self._asked:
            self._end()
        self._asked = True

    def _end(self, *signal_and_frame: object) -> None:
        # Once only: another signal while the ranks are being ended changes nothing.
        if not self._ended:
            self._ended = True
            raise _cancelled()


def _cancelled() -> JobCancelled:
    return JobCancelled(
        "cancelled; nothing was published, and the same command goes on from the last checkpoint"
    )
