"""Plain records that the database layer, the scheduler and the nodes exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class QueueRules:
    """The rules of a queue. `limit` is the largest number of groups at a time; None means no limit."""

    name: str
    limit: int | None = None
    open: bool = True
    shares: dict[str, float] = field(default_factory=dict)
    """Weight by owner. Owners that are not listed have weight 1."""

    def accepts(self, groups: int) -> bool:
        """True if the queue is open and can start another group while `groups` are running."""
        return self.open and (self.limit is None or groups < self.limit)


@dataclass(frozen=True, kw_only=True)
class PlacedGroup:
    """A complete group: slots by node. The first node hosts the rendezvous."""

    job: str
    slots: dict[str, int]

    @property
    def ranks(self) -> int:
        return sum(self.slots.values())


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The share of an attempt that one node renders, claimed by one supervisor."""

    attempt: str
    node: str
    supervisor: str
    job: str
    digest: str
    fence: int
    spec: dict[str, Any]
    place: int
    """Index of the node within the group; 0 hosts the rendezvous."""
    slots: tuple[int, ...]
    nodes: int
    address: str
    """Address of this node."""
    folder: str
    """Folder of the image in the farm's store, by this node's numerics."""
    secret: str | None = field(default=None, repr=False)
    """Authenticates the nodes of the group to each other; None for an attempt of an older version."""
    numerics: str | None = None
    """Identity of this node's numerics, see `render.numerics`."""
    begun: bool = False
    """The group exists already (it is warm) on its only node, so there is nobody to wait for."""
    follows: str | None = None
    """The attempt before it, whose warm group of several nodes goes on with this one."""
    added: bool = False
    """The group renders already: this part joins it."""
    failures: int = 0
    """Attempts of the job that have failed or were lost."""
