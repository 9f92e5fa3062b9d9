"""Which ranks and nodes a running group has, which is first: the group's processes and the database alike."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from infra.errors import ServiceError
from jobs.db.growing import HeldSlots, part_left, record_endpoint
from jobs.db.records import Assignment
from jobs.db.shrinking import FirstNode, take_over
from jobs.errors import JobError
from jobs.farm import Farm
from jobs.node.attempt_log import AttemptLog
from jobs.node.group_slots import GroupSlots, is_elastic
from jobs.node.heartbeat import Heartbeat, with_retry
from jobs.node.network import free_port
from render.events import Event, FirstNodeLost, NodeLost, RankLeft
from render.launch.rank_group import RankGroup
from render.launch.rendezvous_config import Move, Rendezvous
from render.launch.request import Request

_TURN_S = 3.0
"""When the first node of a group is lost, the one that is next has so long to take its place."""
_AS_PLACED = FirstNode(place=0, endpoint="", places=())


class Superseded(JobError):
    """This supervisor no longer holds the attempt."""


class TooFewRanks(JobError):
    """The group has lost a node, and those that are left cannot render the image."""


@dataclass
class GroupMembers:
    """Of the group that one part renders with, as this part's node knows them."""

    farm: Farm
    part: Assignment
    heartbeat: Heartbeat
    log: AttemptLog
    port: int | None = None
    """Of the endpoint that is recorded for the group, on its first node."""
    first: FirstNode = _AS_PLACED
    """The group's first node; another one than that of place 0 when that was lost."""
    _changed: bool = field(init=False)
    """Whether nodes have left the group or may have joined it."""
    _opened: bool = False
    """Whether the group of one node lets ranks of others in."""
    _first_lost_at: float | None = None
    """When the first node was lost, while there is no other; monotonic."""
    _group: RankGroup | None = None
    _slots: GroupSlots | None = None
    """None for a group that others share."""

    def __post_init__(self) -> None:
        self._changed = self.part.added

    @property
    def leads(self) -> bool:
        """Whether this node is the group's first one."""
        return self.part.place == self.first.place

    @property
    def slots_changed(self) -> bool:
        """Whether the group has other slots on this node than it began with."""
        return self._slots is not None and self._slots.changed

    @property
    def are_as_placed(self) -> bool:
        """Whether the group is what it began as, so that it can be kept warm."""
        return not self._changed and not self.slots_changed

    def begin(self, group: RankGroup, request: Request) -> None:
        """The group takes the part's image."""
        self._group, self._slots = group, GroupSlots.of(group, self.part.slots)
        self.heartbeat.elastic = is_elastic(request)

    def on_event(self, event: Event) -> None:
        """Take an event of the ranks; never touches the database."""
        match event:
            case NodeLost() if self.leads:
                self._changed = True
                self.heartbeat.gone.add(event.node)
            case RankLeft() if self._slots is not None:
                self._slots.take(event)
            case FirstNodeLost():
                self._first_lost_at = time.monotonic()

    def follow(self, begun: bool) -> None:
        """Bring about what the database says: another first node, slots that were given or are asked back.

        `begun` tells whether the ranks have begun the image. Raises `Superseded` or `TooFewRanks` when this
        part's share of the image is over.
        """
        if self._first_lost_at is not None:
            self._find_first(self._first_lost_at)
        if self._slots is not None and self.heartbeat.held is not None:
            self._take_slots(self._slots, self.heartbeat.held, begun)

    def _take_slots(self, slots: GroupSlots, held: HeldSlots, begun: bool) -> None:
        part = self.part
        if not held.wanted:
            with_retry(self.farm.database, lambda db: part_left(db, part.attempt, part.node))
            raise Superseded(f"node {part.node} gives its slots back, and the others go on")
        if held.joins and not self._opened and part.nodes == 1:
            self._open(slots.group)
        slots.forget(slots.ended - set(held.slots))
        self.heartbeat.ended |= slots.ended
        if begun and not self.heartbeat.publishing and self._first_lost_at is None:
            slots.follow(held)
        if slots.failed:
            self.heartbeat.elastic = False

    def _open(self, group: RankGroup) -> None:
        """Let the ranks of other nodes in that were added to the group."""
        part = self.part
        assert part.secret is not None, "a group without one takes nobody in"
        port = self.port or free_port(part.address)
        try:
            with self.farm.database.write() as connection:
                record_endpoint(connection, part, f"{part.address}:{port}")
        except ServiceError:
            # They wait for a while.
            return
        self._opened = self._changed = True
        group.open(Rendezvous(host=part.address, port=port, secret=part.secret))

    def _find_first(self, since: float) -> None:
        """The group has lost its first node: take its place, or go on with whoever has."""
        part, patient = self.part, time.monotonic() - since < _TURN_S
        if part.added and patient:
            # Whom it has joined may be there, and put this node out.
            return
        endpoint = f"{part.address}:{free_port(part.address)}"
        try:
            with self.farm.database.write() as connection:
                found = take_over(connection, part, self.first, endpoint, patient=patient)
        except ServiceError:
            # The ranks wait for a while; the heartbeat knows when to give up.
            return
        if found is None:
            return
        if found.problem is not None:
            raise TooFewRanks(found.problem)
        self._first_lost_at, self.first, self._changed = None, found, True
        own = "this one" if self.leads else f"number {found.place}"
        self.log.write(f"the first node of the group is lost; {own} takes its place")
        host, _, port = found.endpoint.rpartition(":")
        assert self._group is not None, "it has sent an event"
        self._group.move(Move(first=found.place, host=host, port=int(port), nodes=found.places))
