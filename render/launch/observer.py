"""What a rank lets somebody measure; who measures is named in the request, and unknown to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Protocol

from render.events import Event
from render.sink import SinkCall


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """What an observer knows of its rank and its image."""

    rank: int
    slot: int
    """The node's slot; the local rank where there is no farm."""
    model: str
    """As the spec names it."""
    device_memory: Callable[[], Mapping[str, int]]
    """Bytes that the rank's tensors take: allocated, reserved, peak; empty on a CPU."""


class RankObserver(Protocol):
    """Sees everything that one rank does for one image. Must not block."""

    def on_event(self, event: Event) -> None:
        """Every event of this rank, also those that the group is not sent."""
        ...

    def on_sink_call(self, call: SinkCall) -> None:
        """Every call of the sink, from whichever thread."""
        ...

    def close(self) -> None:
        """The rank is done with the image, or has failed at it."""
        ...


class NoObserver:
    """A `RankObserver` that does nothing."""

    def on_event(self, event: Event) -> None: ...

    def on_sink_call(self, call: SinkCall) -> None: ...

    def close(self) -> None: ...


def make_observer(name: str | None, context: RankContext) -> RankObserver:
    """The observer that the factory `module:function` gives for a rank; one that does nothing for None."""
    if name is None:
        return NoObserver()
    observer: RankObserver = resolve_name(name)(context)
    return observer
