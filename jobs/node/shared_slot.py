"""A slot that renders several images at once: each is a part of its own, with a runner in a thread.

Each has its own attempt, fence, lease, progress and manifest, and is cancelled, paused and failed alone. When
one ends, or there is room otherwise, queued jobs of the same model join in their turn.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import ServiceError
from jobs.db.records import Assignment
from jobs.farm import Farm
from jobs.node.attempt_runner import AttemptRunner
from jobs.node.slot_images import SlotImages
from jobs.scheduler.joining import anything_queued, join_slot
from render.launch.rank_group import RankGroup
from render.launch.shared_group import SharedGroup

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
"""Between two looks for jobs that may join, while no image ends."""


@dataclass
class _Running:
    """An image of the slot."""

    runner: AttemptRunner
    thread: threading.Thread
    seconds: float = 0.0
    """Its share of the slot's time so far."""


@dataclass
class SharedSlot:
    """Renders the first part, and with it those that join, until none is left."""

    farm: Farm
    logs: Path
    stopping: Callable[[], bool]
    group: RankGroup
    images: SlotImages
    names: Iterator[str]
    """Names for the supervisors of the parts that join: each part has one of its own, never used again."""
    next: Assignment | None = None
    """The slot's next part, claimed already, if that one cannot join."""
    _shared: SharedGroup = field(init=False)
    _running: list[_Running] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    """Taken from `names`, for the parts that join next."""
    _counted: float = field(default_factory=time.monotonic)
    _looked: float = float("-inf")

    def __post_init__(self) -> None:
        self._shared = SharedGroup(self.group, self.images.at_once)

    def run(self, first: Assignment) -> None:
        """Return when no image is left, or when the group has ended."""
        self._start(first, starts_group=not self.group.alive())
        while self._running or self._shared.images:
            self._shared.pump()
            self._count_seconds()
            if self._take_ended() or time.monotonic() - self._looked > _LOOK_S:
                self._join()
        if self._shared.broken:
            self.group.close()

    def _start(self, part: Assignment, starts_group: bool = False) -> None:
        runner = AttemptRunner(self.farm, part, None, self.logs, self.stopping, shared=self._shared)
        if starts_group:
            runner.count_start()
        thread = threading.Thread(target=runner.run, daemon=True, name=f"attempt {part.attempt}")
        running = _Running(runner, thread)
        runner.slot_seconds = lambda: running.seconds
        self._running.append(running)
        thread.start()

    def _count_seconds(self) -> None:
        """Deal the time since the last call out to the images."""
        moment = time.monotonic()
        for each in self._running:
            each.seconds += (moment - self._counted) / len(self._running)
        self._counted = moment

    def _take_ended(self) -> bool:
        """Whether an image has ended, so that others may join."""
        ended = [each for each in self._running if not each.thread.is_alive()]
        self._running = [each for each in self._running if each not in ended]
        for part in (each.runner.next for each in ended):
            # The last image of all has taken the slot's next job.
            if part is None:
                continue
            if self._may_start(part):
                self._start(part)
            else:
                self.next = part
        return bool(ended)

    def _may_start(self, part: Assignment) -> bool:
        with contextlib.suppress(ServiceError), self.farm.database.read() as connection:
            return bool(self.images.alike(connection, [part.job]))
        return False

    def _join(self) -> None:
        """Start what may join. Whatever happens here, the images that are there go on."""
        self._looked = time.monotonic()
        room = self.images.at_once - max(len(self._running), self._shared.images)
        if room < 1 or not self._running or self.next is not None or self._shared.broken or self.stopping():
            return
        beside = [each.runner.claimed for each in self._running]
        # With the same names until they are given: the reply to the last try may have been lost.
        self._names += itertools.islice(self.names, max(0, room - len(self._names)))
        try:
            with self.farm.database.read() as connection:
                if not anything_queued(connection, str(beside[0].spec["model"])):
                    return
            with self.farm.database.write() as connection:
                parts = join_slot(connection, beside, self._names[:room], self.images.alike)
        except ServiceError:
            # The database is away; there is a next look.
            return
        except Exception:
            _log.exception("no job can join the images of slot %s", beside[0].slots)
            return
        given = {part.supervisor for part in parts}
        self._names = [name for name in self._names if name not in given]
        for part in parts:
            self._start(part)
