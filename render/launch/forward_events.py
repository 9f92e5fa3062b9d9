"""Passes a rank's events on: all of them to its observer, those that the group needs to the group."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from render.events import Event, ImageDone, StepDone, StepTimed, TilesWritten
from render.launch.event_channel import EventSender
from render.launch.observer import RankObserver


@dataclass
class ForwardEvents:
    """An `OnEvent` of one image.

    All ranks take the same steps; the first one of each node reports them, the others only their times. Each
    rank has its own tiles.
    """

    events: EventSender
    observer: RankObserver
    request: int
    """Number of the request."""
    rank: int
    """Of this process among those that render the image."""
    first: bool
    """Whether it is the first of them on its node."""
    image: int = 0
    """Number of the image, of a request that has several."""
    _done: ImageDone | None = field(default=None, init=False)

    def __call__(self, event: Event) -> None:
        event = replace(event, image=self.image)
        if isinstance(event, ImageDone):
            # Passed on by `finish`: a group that forms anew before that gets here once more.
            self._done = replace(event, request=self.request, rank=self.rank)
            return
        self.observer.on_event(event)
        if self.first or isinstance(event, TilesWritten):
            self.events.send(event)
        elif isinstance(event, StepDone):
            self.events.send(StepTimed(stage=event.stage, step=event.step, phases=event.phases))

    def finish(self) -> None:
        """Pass on that the image is done.

        All ranks are here at the same point; each node learns that its ranks wait for the next request.
        """
        if self._done is not None:
            self.observer.on_event(self._done)
            if self.first:
                self.events.send_reliable(self._done)
