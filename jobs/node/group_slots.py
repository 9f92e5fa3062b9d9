"""The slots of a group on its node, which the scheduler may add to and ask back while the group renders."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from jobs.db.growing import HeldSlots
from render.events import RankLeft
from render.launch.added_ranks import AddedRank
from render.launch.gpus import visible_gpus
from render.launch.rank_group import RankGroup
from render.launch.request import Request
from render.plan.replica_size import LARGEST_REPLICA_BYTES, largest_replica
from render.spec import Spec

SETTLE_S = 2.0
"""A slot is added so long after it was given: a warm group that still has it ends within this time."""


@dataclass
class GroupSlots:
    """The slots of one group, and the ranks on them; for one image."""

    group: RankGroup
    changed: bool = False
    """Whether it has ever been another group than it began as."""
    failed: bool = False
    """Whether a rank has failed to join it, or has left it without being told: it is given no more."""
    ended: set[int] = field(default_factory=set)
    """Slots whose ranks have ended, until `forget`."""
    _slots: dict[int, int] = field(default_factory=dict)
    """By local rank."""
    _next: int = 0
    """The next local rank; no number is used twice."""
    _removed: set[int] = field(default_factory=set)
    """Local ranks that were told to leave."""
    _given_at: float | None = None
    """When slots were seen that have no ranks yet; monotonic."""

    @classmethod
    def of(cls, group: RankGroup, slots: tuple[int, ...]) -> GroupSlots:
        """Of a group that begins with these slots."""
        return cls(group, _slots=dict(enumerate(slots)), _next=len(slots))

    def follow(self, held: HeldSlots) -> None:
        """Have ranks start on slots that were given, and leave those that are asked back. Raises
        `GroupLost`."""
        removed = {local for local, slot in self._slots.items() if slot not in held.wanted} - self._removed
        if removed:
            self.changed = True
            self._removed |= removed
            self.group.remove(sorted(removed))
        new = [slot for slot in held.wanted if slot not in {*self._slots.values(), *self.ended}]
        if not new:
            self._given_at = None
            return
        self._given_at = self._given_at or time.monotonic()
        if time.monotonic() - self._given_at >= SETTLE_S:
            self._add(new)

    def take(self, event: RankLeft) -> None:
        """A rank has ended, and the others go on without it."""
        self.failed = self.failed or not event.asked
        self._removed.discard(event.local_rank)
        slot = self._slots.pop(event.local_rank, None)
        if slot is not None:
            self.ended.add(slot)

    def forget(self, slots: set[int]) -> None:
        """It is recorded that these slots are free."""
        self.ended -= slots

    def _add(self, slots: list[int]) -> None:
        self.changed, self._given_at = True, None
        visible = visible_gpus()
        ranks = [
            AddedRank(local_rank=local, slot=slot, gpu=visible[slot].selector if visible else None)
            for local, slot in enumerate(slots, self._next)
        ]
        self._next += len(ranks)
        self._slots |= {rank.local_rank: rank.slot for rank in ranks}
        self.group.add(ranks)


def is_elastic(request: Request) -> bool:
    """Whether the group of a request takes ranks in while it renders: its canvas is small enough that each
    rank holds it."""
    spec, info = Spec.from_mapping(request.spec), request.info
    side = info.scale_factor
    latents = -(-spec.width // side) * -(-spec.height // side)
    return largest_replica(info.latent_channels, latents) <= LARGEST_REPLICA_BYTES
