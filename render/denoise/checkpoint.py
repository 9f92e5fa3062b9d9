"""Checkpoints: the canvas between two steps, from which any number of ranks can go on to the same bits.

What all ranks have heard of the canvas for the next step is kept with it. Only the newest is kept, under one
key of the image's sink, so it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntFlag

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from render.canvas import Canvas, cut_out
from render.denoise.stage_loop import StageState
from render.distributed import Group, all_gather_fp16
from render.numerics import NUMERICS, same_numerics
from render.plan.geometry import Rect
from render.plan.topology import Topology
from render.sink import CHECKPOINT, Sink

KEY = CHECKPOINT
_NOTHING = Rect(y=0, x=0, height=0, width=0)
_NOTHING_SAID = torch.empty(0, dtype=torch.float16)


class ControlFlag(IntFlag):
    """What a rank asks of all, said in the step's one gather; it is granted when anybody asks."""

    NONE = 0
    CHECKPOINT = 1
    STOP = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A stage's whole canvas between two steps."""

    stage: int
    canvas: Canvas

    def pack(self, identity: str) -> bytes:
        """As safetensors, with what `identity_of` says and a checksum."""
        planes = self.canvas.planes.contiguous()
        said = _NOTHING_SAID if self.canvas.said is None else self.canvas.said.contiguous()
        info = {
            "identity": identity,
            "stage": self.stage,
            "step": self.canvas.step,
            "heard": self.canvas.heard,
            "anchored": self.canvas.anchored,
            "sha256": _checksum(planes, said),
        }
        return save({"planes": planes, "said": said}, metadata={"chorale": json.dumps(info)})

    @classmethod
    def unpack(cls, data: bytes, identity: str) -> Checkpoint | None:
        """Read it again; None for one of another identity, and for a damaged one."""
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            info = json.loads(header["__metadata__"]["chorale"])
            tensors = load(data)
            planes, said = tensors["planes"], tensors["said"]
            stage, step, heard, anchored = (
                int(info[name]) for name in ("stage", "step", "heard", "anchored")
            )
        except (ValueError, KeyError, TypeError, SafetensorError):
            return None
        if not same_numerics(info.get("identity"), identity) or info.get("sha256") != _checksum(planes, said):
            return None
        area = Rect(y=0, x=0, height=planes.shape[2], width=planes.shape[3])
        canvas = Canvas(step=step, planes=planes, area=area, heard=heard, anchored=bool(anchored), said=said)
        return cls(stage=stage, canvas=canvas)


def identity_of(digest: str, device: torch.device) -> str:
    """Whose unfinished work it is: another device, torch or numerics would continue with other last bits."""
    return f"{digest} {device.type} torch-{torch.__version__} numerics-{NUMERICS}"


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """What came of an attempt to store a checkpoint."""

    checkpoint: Checkpoint
    bytes: int
    """0 when it was not stored."""
    seconds: float
    error: Exception | None


class CheckpointManager:
    """Keeps the checkpoints of the image with a spec's `digest` in its sink.

    Rank 0's clock says when; all ranks take part.

    `stop` is asked before each step on every rank: if anybody's says so, all ranks keep a checkpoint after
    that step and end there. `on_kept` hears of each attempt to store one.
    """

    def __init__(
        self,
        sink: Sink,
        digest: str,
        device: torch.device,
        *,
        every_s: float,
        stop: Callable[[], bool] = lambda: False,
        on_kept: Callable[[SaveResult], None] = lambda kept: None,
    ) -> None:
        self._sink, self._every_s = sink, every_s
        self.identity = identity_of(digest, device)
        self._stop, self._on_kept = stop, on_kept
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._storing: Future[None] | None = None
        self._last = time.monotonic()

    def wish(self, group: Group) -> ControlFlag:
        """What this rank asks for with its next step."""
        wish = ControlFlag.STOP if self._stop() else ControlFlag.NONE
        storing = self._storing is not None and not self._storing.done()
        if group.rank == 0 and not storing and time.monotonic() - self._last >= self._every_s:
            wish |= ControlFlag.CHECKPOINT
        return wish

    def keep(self, stage: int, seat: StageState) -> None:
        """Bring the canvas together on rank 0, which stores it beside the next steps. All ranks call it."""
        canvas = seat.gather(None if seat.group.rank == 0 else _NOTHING)
        if seat.group.rank == 0:
            self.close()
            self._storing = self._pool.submit(self._store, Checkpoint(stage=stage, canvas=canvas))
            self._last = time.monotonic()

    def find(self, group: Group) -> RestoredCheckpoint | None:
        """The checkpoint to go on from, the same on all ranks; all call it, and only rank 0 reads."""
        kept = self._read() if group.rank == 0 else None
        info = b""
        if kept is not None:
            canvas = kept.canvas
            said_length = 0 if canvas.said is None else len(canvas.said)
            numbers = kept.stage, canvas.step, canvas.heard, canvas.anchored, said_length
            info = json.dumps([*numbers, list(canvas.planes.shape)]).encode()
        said = group.all_gather_bytes(info)[0]
        if not said:
            return None
        stage, step, heard, anchored, said_length, shape = json.loads(said)
        return RestoredCheckpoint(
            stage=stage,
            step=step,
            heard=heard,
            anchored=anchored,
            said_length=said_length,
            shape=tuple(shape),
            kept=kept,
        )

    def close(self) -> None:
        """Wait until what is being stored is stored."""
        if self._storing is not None:
            self._storing.result()

    def _store(self, checkpoint: Checkpoint) -> None:
        started, stored, error = time.monotonic(), 0, None
        try:
            data = checkpoint.pack(self.identity)
            self._sink.put(KEY, data, "application/octet-stream")
            stored = len(data)
        except Exception as exc:  # Whatever it was, the render goes on: there will be a next checkpoint.
            error = exc
        seconds = time.monotonic() - started
        self._on_kept(SaveResult(checkpoint=checkpoint, bytes=stored, seconds=seconds, error=error))

    def _read(self) -> Checkpoint | None:
        if self._sink.size(KEY) is None:
            return None
        return Checkpoint.unpack(self._sink.get(KEY), self.identity)


@dataclass(frozen=True, kw_only=True)
class RestoredCheckpoint:
    """A checkpoint that all ranks know of and rank 0 has in memory."""

    stage: int
    step: int
    heard: int
    anchored: bool
    said_length: int
    """Numbers that every rank has heard beside the canvas."""
    shape: tuple[int, ...]
    kept: Checkpoint | None

    def canvas(self, area: Rect, surface: Topology, group: Group, device: torch.device) -> Canvas:
        """The rank's area of it. All ranks call it; plane by plane, so that nobody else holds it all."""
        planes, channels = self.shape[:2]
        own = torch.empty((planes * channels, area.height, area.width))
        for number in range(planes * channels):
            plane = group.all_gather(self._plane(number, device)).wait()[0].cpu()
            own[number] = cut_out(plane, surface.whole, area, surface)
        mine = own.view(planes, channels, area.height, area.width)
        return Canvas(
            step=self.step,
            planes=mine,
            area=area,
            heard=self.heard,
            anchored=self.anchored,
            said=self._said(group, device),
        )

    def _said(self, group: Group, device: torch.device) -> Tensor:
        if not self.said_length:
            return _NOTHING_SAID
        said = torch.zeros(self.said_length, dtype=torch.float16)
        if self.kept is not None and self.kept.canvas.said is not None:
            said = self.kept.canvas.said
        return all_gather_fp16(group, said.to(device))[0].cpu()

    def _plane(self, number: int, device: torch.device) -> Tensor:
        if self.kept is None:
            return torch.zeros(self.shape[2:], device=device)
        return self.kept.canvas.planes.flatten(0, 1)[number].to(device)


def _checksum(planes: Tensor, said: Tensor) -> str:
    digest = hashlib.sha256(planes.contiguous().numpy().tobytes())
    digest.update(said.numpy().tobytes())
    return digest.hexdigest()
