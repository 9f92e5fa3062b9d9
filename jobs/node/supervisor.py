"""A supervisor: `python -m jobs.node.supervisor PARENT NODE ATTEMPT HOME`.

It claims its node's part of an attempt, renders it with a group of ranks, and keeps the attempt's lease in
the database. The group then takes the next job that is placed on the same slots, and stays warm for a while
when there is none. It dies with its agent, and its ranks with it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import ServiceError, StoreError
from infra.logging import configure_logging
from infra.settings import read_settings
from jobs.db.claims import claim, next_offer
from jobs.db.records import Assignment
from jobs.farm import Farm, open_farm
from jobs.node.attempt_runner import AttemptRunner, make_group
from jobs.node.heartbeat import Heartbeat, with_retry
from jobs.node.shared_slot import SharedSlot
from jobs.node.slot_images import SlotImages, images_of_slot, parse_slot_images
from jobs.numerics import local_numerics
from jobs.scheduler.warm_reuse import next_for_group, waiting_for_slots
from render.errors import BadInput
from render.launch.parent_death import die_with_parent
from render.launch.rank_group import RankGroup

_POLL_S = 0.25
"""Between two looks for work while the group is idle."""
_ADOPT_S = 3.0
"""The other nodes of a group wait so long for the first one to take an attempt for all."""


def main() -> int:
    """Render part after part; 0 also when there was nothing to do."""
    parent, node, attempt, home = sys.argv[1:5]
    die_with_parent(int(parent))
    configure_logging()
    with open_farm(read_settings({}), renders=True) as farm:
        name, numerics = f"{node}-{os.getpid()}-{uuid.uuid4().hex[:8]}", local_numerics().identity
        supervisor = _Supervisor(farm, name, Path(home))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, supervisor.stop)
        part = with_retry(farm.database, lambda connection: claim(connection, attempt, node, name, numerics))
        if part is not None:
            supervisor.run(part)
    return 0


@dataclass
class _Supervisor:
    farm: Farm
    name: str
    home: Path
    _stopping: bool = False
    _group: RankGroup | None = field(default=None)
    _joined: itertools.count[int] = field(default_factory=itertools.count)

    def stop(self, *_: object) -> None:
        """End after the step, with a checkpoint."""
        self._stopping = True

    def run(self, first: Assignment) -> None:
        current: Assignment | None = first
        ended: float | None = None
        try:
            while current is not None:
                images = self._images_of_slot(current)
                if images is not None:
                    current, ended = self._run_shared(current, images), None
                    continue
                runner = AttemptRunner(
                    self.farm, current, self._group, self.home, lambda: self._stopping, ended
                )
                warm = runner.run()
                if warm is None and self._group is not None:
                    self._group.close()
                self._group = warm
                ended = runner.ended if runner.next is not None else None
                current = runner.next or self._next(current)
        finally:
            if self._group is not None:
                self._group.close()

    def _images_of_slot(self, part: Assignment) -> SlotImages | None:
        wanted = parse_slot_images(self.farm.settings.slot_images)
        if wanted == 1:
            return None
        # The part has no runner yet, and its model may have to be fetched.
        heartbeat = Heartbeat(self.farm.database, part)
        heartbeat.start()
        try:
            return images_of_slot(self.farm.database, part, wanted)
        except (ServiceError, StoreError, BadInput):
            # What is wrong with the part is found, and told, when it is rendered alone.
            return None
        finally:
            heartbeat.stop()

    def _run_shared(self, first: Assignment, images: SlotImages) -> Assignment | None:
        """Render a part and those that join it; returns the slot's next part."""
        if self._group is not None and not self._group.alive():
            self._group.close()
            self._group = None
        self._group = self._group or make_group(first)
        names = (f"{self.name}+{number}" for number in self._joined)
        slot = SharedSlot(self.farm, self.home, lambda: self._stopping, self._group, images, names)
        slot.run(first)
        return slot.next or self._next(first)

    def _next(self, last: Assignment) -> Assignment | None:
        """Keep the group warm for a while, in case its slots get more work."""
        return self._next_of_node(last) if last.nodes == 1 else self._next_of_group(last)

    def _next_of_group(self, last: Assignment) -> Assignment | None:
        """The first node of a group chooses; the others wait a little longer, so that it goes first."""
        end = time.monotonic() + self.farm.settings.warm_s + (_ADOPT_S if last.place else 0.0)
        taken_since: float | None = None
        while self._group is not None and self._group.alive() and not self._stopping:
            with contextlib.suppress(ServiceError):
                with self.farm.database.read() as connection:
                    waiting = waiting_for_slots(connection, last)
                if waiting == "others":
                    return None
                if waiting == "group":
                    with self.farm.database.write() as connection:
                        part = next_for_group(connection, last)
                    # The first node may be about to take it for the group.
                    taken_since = taken_since or time.monotonic()
                    if part is not None or last.place == 0 or time.monotonic() - taken_since > _ADOPT_S:
                        return part
            if time.monotonic() > end:
                break
            time.sleep(_POLL_S)
        return None

    def _next_of_node(self, last: Assignment) -> Assignment | None:
        end = time.monotonic() + self.farm.settings.warm_s
        while self._group is not None and self._group.alive() and not self._stopping:
            with contextlib.suppress(ServiceError):
                with self.farm.database.read() as connection:
                    attempt, free = next_offer(connection, last)
                if attempt is not None:
                    with self.farm.database.write() as connection:
                        return claim(connection, attempt, last.node, self.name, last.numerics)
                if not free:
                    return None
            if time.monotonic() > end:
                break
            time.sleep(_POLL_S)
        return None


if __name__ == "__main__":
    sys.exit(main())
