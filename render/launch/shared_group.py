"""One rank that renders the requests of several threads at once; each waits for its own image only."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from render.errors import GroupLost, Stopped
from render.events import Event, ImageDone, ModelLoaded, OnEvent, RankFailed, RankStopped, ignore_event
from render.launch.rank_group import RankGroup, group_failed
from render.launch.request import Request

_TICK_S = 0.1


class SharedGroupLost(GroupLost):
    """The group broke off while it rendered several images, any of which may be the cause."""


@dataclass
class SharedGroup:
    """`render` may be called by several threads at once, `pump` by one, until nothing is rendered any more.

    What ends one image leaves the others. The group itself belongs to whoever made it, and closes it.
    """

    group: RankGroup
    at_once: int
    """Images that the rank renders at the same time. More requests than that wait for room."""
    broken: bool = False
    """The group has ended or reported an error of its own; it renders nothing any more."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _images: dict[int, queue.SimpleQueue[Event | Exception]] = field(default_factory=dict)
    """By the number of its request: the events of each image that the rank has not ended yet."""

    @property
    def images(self) -> int:
        """Images that the rank has not ended yet, also those that nobody waits for any more."""
        with self._lock:
            return len(self._images)

    def alive(self) -> bool:
        """Whether the rank's processes are there."""
        return self.group.alive()

    def render(
        self, request: Request, on_event: OnEvent = ignore_event, *, on_tick: Callable[[], bool]
    ) -> ImageDone:
        """Render one image beside the others; see `RankGroup.render`.

        `on_tick` returns True to have this image stop after its step. If it raises, the image is stopped too,
        and not waited for.
        """
        events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        with self._lock:
            if self.broken:
                raise SharedGroupLost("the group of ranks broke off before this image began")
            number = self.group.begin(request)
            self._images[number] = events
        try:
            return self._until_done(number, events, on_event, on_tick)
        except BaseException:
            self.group.stop_request(number)
            raise

    def pump(self) -> None:
        """Wait a moment for an event, and pass it on. When the group has ended, all images end with it."""
        with self._lock:
            # Until the first request there is no process that could send anything.
            idle = not self._images
        if idle:
            time.sleep(_TICK_S)
            return
        try:
            event = self.group.receive()
        except Exception as exc:
            self._end_all(exc)
            return
        if event is None:
            return
        with self._lock:
            if isinstance(event, ModelLoaded):
                receivers = list(self._images.values())
            else:
                receivers = [self._images[event.image]] if event.image in self._images else []
            if isinstance(event, ImageDone | RankStopped | RankFailed):
                self._images.pop(event.image, None)
        for events in receivers:
            events.put(event)

    def _until_done(
        self,
        number: int,
        events: queue.SimpleQueue[Event | Exception],
        on_event: OnEvent,
        on_tick: Callable[[], bool],
    ) -> ImageDone:
        while True:
            if on_tick():
                self.group.stop_request(number)
            try:
                event = events.get(timeout=_TICK_S)
            except queue.Empty:
                continue
            if isinstance(event, Exception):
                raise event
            on_event(event)
            match event:
                case ImageDone():
                    return event
                case RankStopped():
                    raise Stopped(event.text)
                case RankFailed():
                    raise group_failed(event)

    def _end_all(self, exc: Exception) -> None:
        with self._lock:
            self.broken = True
            images, self._images = self._images, {}
        if isinstance(exc, GroupLost) and len(images) > 1:
            exc = SharedGroupLost(str(exc))
        for events in images.values():
            events.put(exc)
