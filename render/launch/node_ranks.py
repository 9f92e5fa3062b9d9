"""The ranks of a node, as the server of its epochs (`epoch_server`) knows them: who lives, waits, ended."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from render.events import RankLeft
from render.launch.added_ranks import LOCAL_RANK
from render.launch.epoch_peers import Peer

_CRASH_SIGNALS = {signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""A rank that was ended by one of these is replaced. Other ends have a cause that its successor would meet
too."""


class Forks(Protocol):
    """What the fork server does with the ranks of its node."""

    def replace(self, rank: int) -> None:
        """Fork the successor of a rank that has ended."""
        ...

    def release(self, rank: int, code: int | None = None) -> None:
        """Let a rank that has ended be, and its proxy end as it did, or with this code."""
        ...

    def add(self, rank: int, changes: Mapping[str, str]) -> None:
        """Fork one more rank; its environment differs from the others' by these values."""
        ...

    def end_all(self, code: int) -> None:
        """End the ranks that are still there, and their proxies with this code."""
        ...


@dataclass
class NodeRanks:
    """The ranks of this node; their numbers are the group's."""

    of_torchrun: range
    """Those that torchrun has started. It ends with the last of them, so one has to stay. None on a node that
    has joined the group: its ranks have numbers that the group has given them."""
    added: dict[int, int] = field(default_factory=dict)
    """Local rank by number: the ranks that came later."""
    coming: list[Mapping[str, str]] = field(default_factory=list)
    """What distinguishes the environments of ranks that have no numbers yet."""
    waiting: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What each rank that waits for an epoch has said."""
    undecided: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Ranks that have ended, and of which it is not decided yet whether they are replaced."""
    removed: set[int] = field(default_factory=set)
    """Ranks that are to leave."""
    gone: set[int] = field(default_factory=set)
    """Those of torchrun's that have left."""
    pids: dict[int, int] = field(default_factory=dict)
    """The process of each living rank."""
    _ends: dict[int, str] = field(default_factory=dict)
    """What has ended each rank: the name of a signal that its successor need not meet, or ""."""

    @property
    def numbers(self) -> set[int]:
        """All that are part of the group."""
        return {*self.of_torchrun, *self.added} - self.gone

    def number(self, rank: int, changes: Mapping[str, str]) -> None:
        """A rank that was added has its number."""
        self.added[rank] = int(changes[LOCAL_RANK])

    def to_leave(self, local_ranks: Sequence[int]) -> list[int]:
        """The numbers of ranks that are told to leave; all but one of torchrun's may."""
        numbers = dict(enumerate(self.of_torchrun)) | {local: rank for rank, local in self.added.items()}
        for local in local_ranks:
            rank = numbers.get(local, -1)
            # Of a node that has joined the group the last one stays, of another one the last of torchrun's.
            stay = (set(self.of_torchrun) or self.numbers) - self.gone - self.removed - {rank}
            if rank in self.numbers and stay:
                self.removed.add(rank)
        return sorted(self.removed)

    def start(self, rank: int, pid: int) -> None:
        """A process of this rank was forked."""
        self.pids[rank] = pid

    def lives(self, peer: Peer) -> bool:
        """Whether a connection is that of a living rank: not so of the last words of one that was reaped."""
        return self.pids.get(peer.rank) == peer.pid

    def end(self, rank: int, code: int, *, replaceable: bool) -> dict[str, Any]:
        """A rank has ended, with an exit code or by a signal (negative); what the coordinator is told."""
        del self.pids[rank]
        self.waiting.pop(rank, None)
        crashed = replaceable and -code in _CRASH_SIGNALS
        self._ends[rank] = signal.Signals(-code).name if crashed else ""
        return {"end": rank, "died": code != 0, "crashed": crashed}

    def ended_by(self, rank: int) -> str:
        """The name of the signal that has ended a rank which may be replaced."""
        return self._ends[rank]

    def left(self, rank: int) -> RankLeft:
        """The others go on without a rank that has ended: what is told of it."""
        local = self.added.pop(rank, rank - self.of_torchrun.start)
        asked, by = rank in self.removed, self._ends[rank]
        self.removed.discard(rank)
        if rank in self.of_torchrun:
            self.gone.add(rank)
        return RankLeft(local_rank=local, asked=asked, text=f"it was ended by {by}" if by else "")
