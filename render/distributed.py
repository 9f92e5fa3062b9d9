"""The process group as an object that the step loop takes as an argument, and anew between two steps.

Ranks only gather; they never reduce floating-point numbers, since a sum whose order depends on the number of
ranks would change pixels. Constructors open nothing; `join` and `leave` do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, distributed_c10d  # type: ignore[attr-defined]
from torch.nn import functional

from render.errors import BadInput, RanksLost, first_line
from render.memory import lacks_memory


class AllGatherHandle(Protocol):
    """An all-gather in flight."""

    def wait(self) -> Tensor:
        """[world_size, *block.shape], in rank order."""
        ...


class Group(Protocol):
    """The ranks that render together. `epoch` increases by one whenever the membership changes."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    def all_gather(self, block: Tensor) -> AllGatherHandle:
        """Start to gather one block of the same shape from every rank."""
        ...

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of every rank, in rank order; lengths may differ."""
        ...


def all_gather_fp16(group: Group, values: Tensor) -> Tensor:
    """[n] float16 of each rank, with the same n -> [world_size, n]."""
    # As pairs in 32-bit integers, which every backend gathers.
    block = functional.pad(values, (0, len(values) % 2)).view(torch.int32)
    return group.all_gather(block).wait().view(torch.float16)[:, : len(values)]


@dataclass(frozen=True)
class _Finished:
    blocks: Tensor

    def wait(self) -> Tensor:
        return self.blocks


@dataclass(frozen=True, kw_only=True)
class SingleRankGroup:
    """A group of one rank: the oracle of every test."""

    rank: int = 0
    world_size: int = 1
    epoch: int = 0

    def all_gather(self, block: Tensor) -> AllGatherHandle:
        return _Finished(block.unsqueeze(0))

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        return [data]


class _Pending:
    """Keeps the sent block alive until the collective is done, since gloo reads it from another thread."""

    def __init__(self, work: Any, block: Tensor, blocks: Tensor, broken: Callable[[], bool] | None) -> None:
        self._work, self._block, self._blocks, self._broken = work, block, blocks, broken

    def wait(self) -> Tensor:
        with _translated():
            if self._broken is not None:
                self._poll(self._broken)
            self._work.wait()
        return self._blocks

    def _poll(self, broken: Callable[[], bool]) -> None:
        """Wait by looking: a collective whose peer is gone may never end, and nothing unblocks gloo's."""
        started = time.monotonic()
        while not self._work.is_completed():
            if broken():
                _ABANDONED.append(self)
                raise RanksLost("a rank of the group has died")
            time.sleep(min(_SLOWEST_POLL_S, _POLL_S + (time.monotonic() - started) / 16))


_POLL_S, _SLOWEST_POLL_S = 0.0001, 0.005
"""Between two looks at a collective: soon for one that is short, seldom for one that is long."""
_ABANDONED: list[object] = []
"""Process groups and collectives that were given up. To free one would wait for what never ends, so they stay
for as long as the process: some descriptors and threads for each lost rank."""


@dataclass(frozen=True, kw_only=True)
class TorchGroup:
    """Ranks joined by torch.distributed: NCCL between GPUs, gloo between CPUs."""

    rank: int
    world_size: int
    epoch: int = 0
    process_group: dist.ProcessGroup | None = None
    broken: Callable[[], bool] | None = None
    """Whether a rank of the group has died; None where nobody can tell."""

    def all_gather(self, block: Tensor) -> AllGatherHandle:
        block = block.contiguous()
        blocks = block.new_empty((self.world_size, *block.shape))
        with _translated():
            work = _gather_into(blocks.flatten(0, 1) if block.dim() else blocks, block, self.process_group)
        return _Pending(work, block, blocks, self.broken)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        device = self._backend_device()
        lengths = (
            self.all_gather(torch.tensor([len(data)], dtype=torch.int64, device=device)).wait().flatten()
        )
        longest = max(1, int(lengths.max()))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else padded[:0]
        rows = self.all_gather(padded.to(device)).wait().cpu().numpy()
        return [rows[rank, : int(lengths[rank])].tobytes() for rank in range(self.world_size)]

    def _backend_device(self) -> torch.device:
        nccl = dist.get_backend(self.process_group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _gather_into(blocks: Tensor, block: Tensor, process_group: dist.ProcessGroup | None) -> Any:
    """The one shim over torch's renaming of `all_gather_into_tensor` to `all_gather_single` (2.13)."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return gather(blocks, block, group=process_group, async_op=True)


@contextmanager
def _translated() -> Iterator[None]:
    """Translates the errors of a lost peer: gloo raises RuntimeError, NCCL and the store subclasses of it."""
    try:
        yield
    except RuntimeError as exc:
        if lacks_memory(exc):
            raise
        raise RanksLost(f"other ranks of the group are gone ({first_line(exc, None)})") from exc


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` -> the device of this rank. Raises `BadInput` for `cuda` without a CUDA
    device."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise BadInput("device", wanted, "is unknown; use auto, cpu or cuda")
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput("device", wanted, "needs a CUDA device, and torch finds none; use --device cpu")
    if local_rank >= torch.cuda.device_count():
        raise BadInput(
            "ranks", local_rank + 1, f"are more than the {torch.cuda.device_count()} GPUs of this node"
        )
    return torch.device("cuda", local_rank)


def join(device: torch.device) -> TorchGroup:
    """Join the group that torchrun describes in the environment: NCCL on GPUs, gloo on CPUs.

    Raises `RanksLost` when the other ranks do not join in time.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _translated():
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
    return TorchGroup(rank=dist.get_rank(), world_size=dist.get_world_size())


def join_epoch(
    device: torch.device,
    store: Store,
    *,
    rank: int,
    world_size: int,
    epoch: int,
    broken: Callable[[], bool],
) -> TorchGroup:
    """Join the ranks of an epoch over a store of their node; `broken` tells whether the epoch has ended.

    Raises `RanksLost` when the others do not join in time.
    """
    own = PrefixStore(f"epoch-{epoch}", store)
    # torch numbers the groups that it has made, or failed to make, in the keys of its store. A rank that has
    # just been started has made none.
    distributed_c10d._world.group_count = 0
    with _translated():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=own,
            rank=rank,
            world_size=world_size,
            device_id=device if device.type == "cuda" else None,
            timeout=_JOIN[device.type],
        )
        # A collective may take as long as the slowest rank's model call.
        distributed_c10d._set_pg_timeout(distributed_c10d.default_pg_timeout)
    return TorchGroup(rank=rank, world_size=world_size, epoch=epoch, broken=broken)


_JOIN = {"cpu": timedelta(seconds=5), "cuda": timedelta(seconds=60)}
"""A rank that dies while the others connect to it is waited for so long; then there is another epoch."""


def abandon() -> None:
    """Leave the group though ranks of it are gone, without waiting for anything."""
    if not dist.is_initialized():
        return
    _ABANDONED.append(dist.group.WORLD)
    if dist.get_backend() == "nccl":
        distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


def leave() -> None:
    """Leave the group. Does nothing if none was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
