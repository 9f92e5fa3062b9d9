"""Checkpoints: the canvas between two steps, from which any number of ranks continues to the same bits.

The state of the guidance hooks is saved with it. Only the newest checkpoint is kept, under one key of the
image's sink, so it is there as a whole or not at all. One that cannot be continued from is told of in the
log, and the image begins anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from render.canvas import Canvas, cut_out
from render.denoise.replica import Replicas
from render.denoise.stage_loop import StageState
from render.distributed import Group, all_gather_fp16
from render.numerics import NUMERICS, same_numerics
from render.plan.geometry import Rect
from render.plan.topology import Topology
from render.sink import CHECKPOINT, Sink

_log = logging.getLogger(__name__)
KEY = CHECKPOINT
_NAMES_BEFORE_SEALS = {"identity", "stage", "step", "heard", "anchored", "sha256"}
"""What version 0.2.0 and earlier ones wrote; their checksum covers the tensors alone."""
_EMPTY_AREA = Rect(y=0, x=0, height=0, width=0)
_NO_STATE = torch.empty(0, dtype=torch.float16)


class ControlFlag(IntFlag):
    """Control flags of this rank, OR-ed across ranks in the step's one all-gather."""

    NONE = 0
    CHECKPOINT = 1
    STOP = 2
    CHANGE = 4
    """The group changes after this step."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A stage's whole canvas between two steps."""

    stage: int
    canvas: Canvas

    def pack(self, identity: str) -> bytes:
        """As safetensors, with an identity (see `identity_of`) and a checksum of everything."""
        planes = self.canvas.planes.contiguous()
        state = _NO_STATE if self.canvas.hook_state is None else self.canvas.hook_state.contiguous()
        # The names in the file are those of version 0.1, so that its checkpoints can be read: `heard` is the
        # number of history planes, `anchored` tells of reference planes, `said` is the hooks' state.
        info = {
            "identity": identity,
            "stage": self.stage,
            "step": self.canvas.step,
            "heard": self.canvas.history,
            "anchored": self.canvas.has_reference,
            # Of the tensors: version 0.1, which reads this file after a downgrade, checks it.
            "sha256": _checksum(planes, state),
        }
        info["seal"] = _seal(info, planes, state)
        return save({"planes": planes, "said": state}, metadata={"chorale": json.dumps(info)})

    @classmethod
    def unpack(cls, data: bytes, identity: str) -> Checkpoint:
        """The inverse of `pack`.

        Raises `CheckpointUnusable` for a checkpoint of another identity, for a damaged one, and for one whose
        values belong to no canvas.
        """
        try:
            info = json.loads(_header(data)["__metadata__"]["chorale"])
            tensors = load(data)
            planes, state = tensors["planes"], tensors["said"]
            found = info["identity"], info["sha256"], info["stage"], info["step"], info["heard"]
            has_reference = info["anchored"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as exc:
            raise CheckpointUnusable(f"it is damaged ({type(exc).__name__})") from exc
        owner, checksum, stage, step, history = found
        if not isinstance(owner, str) or not same_numerics(owner, identity):
            raise CheckpointUnusable("it was made by another version, device kind or spec")
        whole = checksum == _checksum(planes, state)
        sealed = set(info) != _NAMES_BEFORE_SEALS
        if not whole or (sealed and info.get("seal") != _seal(info, planes, state)):
            raise CheckpointUnusable("its checksum is wrong")
        numbers = all(type(each) is int and each >= 0 for each in (stage, step, history))
        if not numbers or type(has_reference) is not bool:
            raise CheckpointUnusable("its values are of no canvas")
        if (
            planes.ndim != 4
            or planes.dtype != torch.float32
            or state.ndim != 1
            or state.dtype != torch.float16
        ):
            raise CheckpointUnusable("its tensors are of no canvas")
        canvas = Canvas(
            step=step,
            planes=planes,
            area=Rect(y=0, x=0, height=planes.shape[2], width=planes.shape[3]),
            history=history,
            has_reference=has_reference,
            hook_state=state,
        )
        return cls(stage=stage, canvas=canvas)


class CheckpointUnusable(ValueError):
    """A checkpoint that cannot be continued from; the text says why."""


def identity_of(digest: str, device: torch.device) -> str:
    """Whose unfinished work it is: another device, torch or numerics would continue with other last bits."""
    return f"{digest} {device.type} torch-{torch.__version__} numerics-{NUMERICS}"


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """The result of an attempt to save a checkpoint."""

    checkpoint: Checkpoint
    bytes: int
    """0 when it was not saved."""
    seconds: float
    error: Exception | None


class CheckpointManager:
    """Saves and restores the checkpoints of the image with a spec's `digest`, in the image's sink.

    A checkpoint is due every `every_s` seconds by rank 0's clock; all ranks take part in it. `stop` is called
    before each step on every rank. If it is true on any rank, all ranks save a checkpoint after that step and
    stop there. `on_save` is called on rank 0 after each attempt to save, from another thread.

    In a group that may change, `replicas` holds what the ranks have of each other, which is newer than any
    checkpoint, and `changes` is called before each step: if it is true on any rank, the group changes after
    that step.
    """

    def __init__(
        self,
        sink: Sink,
        digest: str,
        device: torch.device,
        *,
        every_s: float,
        stop: Callable[[], bool] = lambda: False,
        on_save: Callable[[SaveResult], None] = lambda result: None,
        replicas: Replicas | None = None,
        changes: Callable[[], bool] | None = None,
    ) -> None:
        self._sink, self._every_s = sink, every_s
        self.replicas, self._changes = replicas, changes
        self.identity = identity_of(digest, device)
        self._stop, self._on_save = stop, on_save
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._last = time.monotonic()

    def control_flags(self, group: Group) -> ControlFlag:
        """The control flags of this rank for its next step."""
        flags = ControlFlag.STOP if self._stop() else ControlFlag.NONE
        if self._changes is not None and self._changes():
            flags |= ControlFlag.CHANGE
        saving = self._pending is not None and not self._pending.done()
        if group.rank == 0 and not saving and time.monotonic() - self._last >= self._every_s:
            flags |= ControlFlag.CHECKPOINT
        return flags

    def save(self, stage: int, state: StageState) -> None:
        """Gather the canvas on rank 0, which saves it while the next steps run. All ranks call it."""
        canvas = state.gather(None if state.group.rank == 0 else _EMPTY_AREA)
        if state.group.rank == 0:
            self.close()
            self._pending = self._pool.submit(self._save, Checkpoint(stage=stage, canvas=canvas))
            self._last = time.monotonic()

    def restore(self, group: Group, fits: Fits = lambda checkpoint: None) -> RestoredCheckpoint | None:
        """The checkpoint to continue from, the same on all ranks. All ranks call it; only rank 0 reads.

        A replica that any rank has goes before it.
        `fits` says why a checkpoint is not one of this image; None for one that is.
        """
        if self.replicas is not None:
            holder = _newest(group, self.replicas.found())
            if holder is not None:
                return _share(group, holder, self._replica() if group.rank == holder else None)
        return _share(group, 0, self._read(fits) if group.rank == 0 else None)

    def _replica(self) -> Checkpoint:
        assert self.replicas is not None
        stage, canvas = self.replicas.take()
        return Checkpoint(stage=stage, canvas=canvas)

    def keep_for_change(self, stage: int, state: StageState) -> None:
        """Gather the canvas on every rank, for the group that comes next. All ranks call it."""
        assert self.replicas is not None
        self.replicas.keep_canvas(stage, state.gather())

    def close(self) -> None:
        """Wait until a checkpoint that is being saved is saved."""
        if self._pending is not None:
            self._pending.result()

    def _save(self, checkpoint: Checkpoint) -> None:
        started, saved, error = time.monotonic(), 0, None
        try:
            data = checkpoint.pack(self.identity)
            self._sink.put(KEY, data, "application/octet-stream")
            saved = len(data)
        except Exception as exc:  # The render goes on whatever it was: there will be a next checkpoint.
            error = exc
        seconds = time.monotonic() - started
        self._on_save(SaveResult(checkpoint=checkpoint, bytes=saved, seconds=seconds, error=error))

    def _read(self, fits: Fits) -> Checkpoint | None:
        if self._sink.size(KEY) is None:
            return None
        try:
            checkpoint = Checkpoint.unpack(self._sink.get(KEY), self.identity)
            problem = fits(checkpoint)
        except CheckpointUnusable as exc:
            problem = str(exc)
        if problem is None:
            return checkpoint
        _log.warning("the checkpoint cannot be continued from, so the image begins anew: %s", problem)
        return None


def _newest(group: Group, found: tuple[int, int] | None) -> int | None:
    """The first rank with the newest canvas; None where no rank has any. All ranks call it."""
    everyone = [json.loads(each) for each in group.all_gather_bytes(json.dumps(found).encode())]
    newest = max((each for each in everyone if each is not None), default=None)
    return None if newest is None else everyone.index(newest)


def _share(group: Group, holder: int, checkpoint: Checkpoint | None) -> RestoredCheckpoint | None:
    """Tell all ranks of the checkpoint that one of them, the holder, has. All ranks call it."""
    header = b""
    if checkpoint is not None:
        canvas = checkpoint.canvas
        numbers = {
            "stage": checkpoint.stage,
            "step": canvas.step,
            "history": canvas.history,
            "has_reference": canvas.has_reference,
            "state_length": 0 if canvas.hook_state is None else len(canvas.hook_state),
            "shape": list(canvas.planes.shape),
        }
        header = json.dumps(numbers).encode()
    header = group.all_gather_bytes(header)[holder]
    if not header:
        return None
    return RestoredCheckpoint(**json.loads(header), holder=holder, checkpoint=checkpoint)


@dataclass(frozen=True, kw_only=True)
class RestoredCheckpoint:
    """A checkpoint that all ranks know of and one has in memory."""

    stage: int
    step: int
    history: int
    has_reference: bool
    state_length: int
    """Numbers of the guidance hooks' state."""
    shape: Sequence[int]
    """Of the planes: [P, C, height, width]."""
    holder: int
    """The rank that has it."""
    checkpoint: Checkpoint | None
    """On the holder."""

    def canvas(self, area: Rect, surface: Topology, group: Group, device: torch.device) -> Canvas:
        """The rank's area of the canvas. All ranks call it. It is sent plane by plane, so that only the
        holder has all of it."""
        planes, channels = self.shape[:2]
        own = torch.empty((planes * channels, area.height, area.width))
        for number in range(planes * channels):
            plane = group.all_gather(self._plane(number, device)).wait()[self.holder].cpu()
            own[number] = cut_out(plane, surface.whole, area, surface)
        return Canvas(
            step=self.step,
            planes=own.view(planes, channels, area.height, area.width),
            area=area,
            history=self.history,
            has_reference=self.has_reference,
            hook_state=self._hook_state(group, device),
        )

    def _hook_state(self, group: Group, device: torch.device) -> Tensor:
        if not self.state_length:
            return _NO_STATE
        state = torch.zeros(self.state_length, dtype=torch.float16)
        if self.checkpoint is not None and self.checkpoint.canvas.hook_state is not None:
            state = self.checkpoint.canvas.hook_state
        return all_gather_fp16(group, state.to(device))[self.holder].cpu()

    def _plane(self, number: int, device: torch.device) -> Tensor:
        if self.checkpoint is None:
            return torch.zeros(tuple(self.shape[2:]), device=device)
        return self.checkpoint.canvas.planes.flatten(0, 1)[number].to(device)


Fits = Callable[[Checkpoint], str | None]


def _header(data: bytes) -> Any:
    """The header of a safetensors file: its length in 8 bytes, then JSON."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _checksum(planes: Tensor, state: Tensor) -> str:
    digest = hashlib.sha256(planes.contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(state.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _seal(info: Mapping[str, Any], planes: Tensor, state: Tensor) -> str:
    """A checksum of everything that a checkpoint says, the tensors' by their own and by their shapes."""
    values = {name: value for name, value in info.items() if name != "seal"}
    tensors = [[str(each.dtype), list(each.shape)] for each in (planes, state)]
    return hashlib.sha256(json.dumps([values, tensors], sort_keys=True).encode()).hexdigest()
