"""The group of a rank whose ranks all live on one node: it forms anew when a rank dies or joins."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from render.denoise.replica import Replicas
from render.distributed import Group, abandon, join_epoch
from render.errors import GroupChanges, RanksLost, RenderFailed
from render.events import EpochBegan, Event
from render.launch.epoch_client import MOST_EPOCHS, EpochClient, ServerLost

_STORE_S = 60


class ElasticGroup:
    """The group of this rank, epoch after epoch. One thread uses it."""

    def __init__(self, directory: Path, send: Callable[[Event], None]) -> None:
        """`send` passes an event on to whoever has started the group."""
        self._rank, self._send = int(os.environ["RANK"]), send
        self._client = EpochClient(directory, self._rank)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_STORE_S))
        self._group: Group | None = None
        self._replicas = Replicas()
        self._request = 0

    @property
    def broken(self) -> bool:
        """Whether a rank of the running epoch has died."""
        return self._group is not None and self._client.broken()

    def joining(self) -> bool:
        """Whether another rank waits to be in the next epoch."""
        return self._client.joining()

    def run(
        self,
        request: int,
        device: torch.device,
        render: Callable[[Group, Replicas], None],
    ) -> bool:
        """Render a request in as many epochs as it takes. False if the others are at a later request.

        `request` is its number. `render` raises `RanksLost` or `GroupChanges` when the epoch has ended; what
        else it raises ends the group. Raises `RenderFailed` when there is no end of epochs.
        """
        if request != self._request:
            self._request, self._replicas = request, Replicas()
        for _ in range(MOST_EPOCHS):
            try:
                if self._group is None or self._client.broken():
                    self._group = self._form(device)
                if not self._agree(self._group, request):
                    return False
                render(self._group, self._replicas)
                # What rank 0 has published counts when everybody knows that it is there.
                self._group.all_gather_bytes(b"")
                self._client.done()
                return True
            except ServerLost:
                raise
            except (RanksLost, GroupChanges):
                self._leave()
        raise RenderFailed(f"the group has formed anew {MOST_EPOCHS} times, and the image is not finished")

    def run_apart(self, request: int, device: torch.device, work: Callable[[int, int], None]) -> None:
        """Have each rank work without the others. If one of them dies meanwhile, the group fails.

        `work` takes the rank among those that are there now, and their number.
        """

        def render(group: Group, replicas: Replicas) -> None:
            self._client.work_apart()
            work(group.rank, group.world_size)

        self.run(request, device, render)

    def _agree(self, group: Group, request: int) -> bool:
        """Wait until all ranks are at the same request. False if the others are at a later one.

        Raises `GroupChanges` when a rank waits to join: it does so before the request begins.
        """
        while True:
            own = json.dumps([request, self._client.joining()]).encode()
            everyone = [json.loads(each) for each in group.all_gather_bytes(own)]
            if any(joining for _, joining in everyone):
                raise GroupChanges("another rank joins")
            numbers = {number for number, _ in everyone}
            if request < max(numbers):
                return False
            if len(numbers) == 1:
                return True

    def _form(self, device: torch.device) -> Group:
        self._leave()
        started = time.perf_counter()
        epoch = self._client.begin()
        group = join_epoch(
            device,
            self._store,
            rank=epoch.ranks.index(self._rank),
            world_size=len(epoch.ranks),
            epoch=epoch.number,
            broken=self._client.broken,
        )
        if epoch.number > 1 and group.rank == 0:
            seconds = time.perf_counter() - started
            self._send(EpochBegan(epoch=epoch.number, ranks=len(epoch.ranks), seconds=seconds))
        return group

    def _leave(self) -> None:
        if self._group is not None:
            self._group = None
            abandon()
