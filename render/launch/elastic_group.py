"""The group of a rank, on one node or several: it forms anew when one dies, joins, leaves or is cut off."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from render.denoise.replica import Replicas
from render.distributed import Group, SingleRankGroup, abandon, join_epoch
from render.errors import GroupChanges, RanksLost, RenderFailed, first_line
from render.events import EpochBegan, Event
from render.launch.added_ranks import requests_before
from render.launch.epoch_client import MOST_EPOCHS, Epoch, EpochClient, ServerLost
from render.launch.rendezvous_config import INTERFACE, INTERFACE_VARIABLES, JOINS

_STORE_S = 60


class ElasticGroup:
    """The group of this rank, epoch after epoch. One thread uses it."""

    def __init__(self, directory: Path, send: Callable[[Event], None]) -> None:
        """`send` passes an event on to whoever has started the group."""
        self._rank, self._send = int(os.environ["RANK"]), send
        on_others = int(os.environ["LOCAL_WORLD_SIZE"]) < int(os.environ["WORLD_SIZE"])
        self.spans_nodes = on_others or JOINS in os.environ
        """Whether there are ranks on other nodes."""
        self.first_of_node = False
        """Whether this rank is the first one of its node in the running epoch."""
        self._client = EpochClient(directory, self._rank)
        self._store: TCPStore | None = None
        self._first_node = 0
        """The node that has the store."""
        self._group: Group | None = None
        self._replicas = Replicas()
        self._request, self._requests_before = 0, requests_before()
        self._lost = False
        """Whether this rank has left its last epoch because it did not reach the others."""

    @property
    def changes_while_idle(self) -> bool:
        """Whether a rank of the running epoch has died. On several nodes also whether one waits to join: its
        node may not know yet that the image is done."""
        if self._group is None:
            return False
        return self._client.broken() or (self.spans_nodes and self._client.joining())

    def joining(self) -> bool:
        """Whether another rank waits to be in the next epoch, or one of this is to leave."""
        return self._client.joining()

    def run(
        self,
        request: int,
        device: torch.device,
        render: Callable[[Group, Replicas], None],
    ) -> bool:
        """Render a request in as many epochs as it takes. False if the others have finished it without this
        rank.

        `request` is its number. `render` raises `RanksLost` or `GroupChanges` when the epoch has ended; what
        else it raises ends the group. Raises `RenderFailed` when there is no end of epochs, and `Dismissed`
        when this rank is to leave.
        """
        request += self._requests_before
        if request != self._request:
            self._request, self._replicas = request, Replicas()
        for _ in range(MOST_EPOCHS):
            try:
                if self._group is None or self._client.broken():
                    self._group = self._form(device, request)
                if self._group is None or not self._agree(self._group, request):
                    return False
                render(self._group, self._replicas)
                # What rank 0 has published counts when everybody knows that it is there.
                self._group.all_gather_bytes(b"")
                self._client.done(request)
                return True
            except ServerLost:
                raise
            except (RanksLost, GroupChanges) as exc:
                self._lost = isinstance(exc, RanksLost)
                self._leave()
        raise RenderFailed(f"the group has formed anew {MOST_EPOCHS} times, and the image is not finished")

    def run_apart(self, request: int, device: torch.device, work: Callable[[int, int], None]) -> None:
        """Have each rank work without the others. If one of them dies meanwhile, the group fails.

        `work` takes the rank among those that are there now, and their number.
        """

        def render(group: Group, replicas: Replicas) -> None:
            self._client.work_apart(request + self._requests_before)
            work(group.rank, group.world_size)

        self.run(request, device, render)

    def _agree(self, group: Group, request: int) -> bool:
        """Wait until all ranks are at the same request. False if the others are at a later one.

        Raises `GroupChanges` when a rank waits to join or is to leave: it does so before the request begins.
        """
        while True:
            own = json.dumps([request, self._client.joining()]).encode()
            everyone = [json.loads(each) for each in group.all_gather_bytes(own)]
            if any(joining for _, joining in everyone):
                raise GroupChanges("a rank joins or leaves")
            numbers = {number for number, _ in everyone}
            if request < max(numbers):
                return False
            if len(numbers) == 1:
                return True

    def _form(self, device: torch.device, request: int) -> Group | None:
        """The group of the next epoch; None if the request is finished."""
        self._leave()
        started = time.perf_counter()
        epoch = self._client.begin(request, lost=self._lost)
        if epoch is None:
            return None
        self._lost = False
        self.first_of_node, self.spans_nodes = epoch.leads_node, epoch.spans_nodes
        group = self._join(device, epoch)
        if epoch.number > 1 and self.first_of_node:
            seconds = time.perf_counter() - started
            self._send(EpochBegan(epoch=epoch.number, ranks=len(epoch.ranks), seconds=seconds))
        return group

    def _join(self, device: torch.device, epoch: Epoch) -> Group:
        if len(epoch.ranks) == 1:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            return SingleRankGroup(epoch=epoch.number)
        if epoch.spans_nodes and INTERFACE in os.environ:
            # The ranks have been on one node so far, and have listened on the loopback.
            os.environ.update(dict.fromkeys(INTERFACE_VARIABLES, os.environ[INTERFACE]))
        if self._store is None or epoch.first_node != self._first_node:
            # The node that had the store may be lost; then another one has a new store.
            self._store, self._first_node = _connect(), epoch.first_node
        return join_epoch(
            device,
            self._store,
            rank=epoch.ranks.index(self._rank),
            world_size=len(epoch.ranks),
            epoch=epoch.number,
            broken=self._client.broken,
        )

    def _leave(self) -> None:
        if self._group is not None:
            self._group = None
            abandon()


def _connect() -> TCPStore:
    """A connection to the group's store, which each node reaches on its own loopback. Raises `RanksLost`."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_STORE_S))
    except DistError as exc:
        raise RanksLost(f"the group's store cannot be reached ({first_line(exc, None)})") from exc
