"""The hooks of a stage, composed in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor
from torch.nn import functional

from render.distributed import Group
from render.guidance.color_correction import ColorCorrection
from render.guidance.control_pictures import ControlPictures
from render.guidance.cross_window_attention import CrossWindowAttention
from render.guidance.dilated_views import DilatedViews
from render.guidance.edge_colors import EdgeColors
from render.guidance.hook import GuidanceHook, Predict, StageContext, Step
from render.guidance.ilvr import ILVR
from render.guidance.kept_pixels import KeptPixels
from render.guidance.masked_picture import MaskedPicture
from render.guidance.reference_pictures import ReferencePictures
from render.guidance.shared_latents import SharedLatents
from render.guidance.skip_residual import SkipResidual
from render.models.model_call import Evaluation, ModelCall
from render.plan.stages import Stage
from render.spec import Spec

HOOKS: tuple[type[GuidanceHook], ...] = (
    SkipResidual,
    SharedLatents,
    CrossWindowAttention,
    DilatedViews,
    ILVR,
    ColorCorrection,
    KeptPixels,
    EdgeColors,
    ControlPictures,
    ReferencePictures,
    MaskedPicture,
)
"""At each point of a step the hooks run in this order. It fixes the order of the arithmetic, and so the
pixels. It also fixes the order of the parts of a message and of a checkpoint's guidance state; checkpoints
have the tokens of `CrossWindowAttention` before the canvas of `DilatedViews`."""


def needs_reference(spec: Spec, stage: Stage, hooks: Sequence[type[GuidanceHook]] = HOOKS) -> bool:
    """Whether a stage that starts from another image has to keep that image beside its latents."""
    return any(hook.needs_reference(spec, stage) for hook in hooks)


class GuidanceHooks:
    """All hooks of one stage on one rank. Its methods call those of `GuidanceHook` in order."""

    def __init__(self, context: StageContext, hooks: Sequence[type[GuidanceHook]] = HOOKS) -> None:
        created = (hook.create(context) for hook in hooks)
        self._hooks = tuple(hook for hook in created if hook is not None)
        self._device = context.device
        self._packed: list[tuple[torch.Size, torch.dtype] | None] = []
        """Shape and type of each hook's message of this step."""

    def restore(self, step: int, state: Tensor | None) -> None:
        """Deal out what `state` has returned before `step`, on any device; None or nothing at a stage's
        start."""
        if state is None or not len(state):
            return
        lengths = [hook.state_length(step) for hook in self._hooks]
        assert sum(lengths) == len(state), f"{len(state)} numbers of state, {sum(lengths)} are expected"
        parts = torch.split(state.to(self._device), lengths)
        for hook, part in zip(self._hooks, parts, strict=True):
            if len(part):
                hook.restore(step, part)

    def state(self) -> Tensor:
        """The state of all hooks for the next step, flat float16, on the host."""
        parts = [part.flatten().cpu() for hook in self._hooks if (part := hook.state()) is not None]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float16)

    def prime(self, step: int, x: Tensor, group: Group) -> None:
        """Before the first step of a group; all ranks call it."""
        for hook in self._hooks:
            hook.prime(step, x, group)

    def adjust_latents(self, step: Step, x: Tensor) -> Tensor:
        """Latents [C, area.height, area.width] -> latents."""
        return reduce(lambda value, hook: hook.adjust_latents(step, value), self._hooks, x)

    def before_step(self, step: Step) -> None:
        """Before any window is evaluated."""
        for hook in self._hooks:
            hook.before_step(step)

    def must_run_first(self, evaluation: Evaluation) -> bool:
        """Whether any hook sends something that depends on this evaluation."""
        return any(hook.must_run_first(evaluation) for hook in self._hooks)

    def adjust_call(self, call: ModelCall) -> ModelCall:
        """A model call before it runs -> the call that runs."""
        return reduce(lambda value, hook: hook.adjust_call(value), self._hooks, call)

    @property
    def runs_calls(self) -> bool:
        """Whether a hook runs the model calls itself, each with its own context."""
        return any(type(hook).predict is not GuidanceHook.predict for hook in self._hooks)

    def predict(self, step: Step, call: ModelCall, forward: Predict) -> Tensor:
        """Run a model call, the first hook outermost, and adjust its predictions [B, C, h, w]."""
        for hook in reversed(self._hooks):
            forward = partial(hook.predict, forward=forward)
        return self.adjust_prediction(step, call, forward(call))

    def adjust_prediction(self, step: Step, call: ModelCall, prediction: Tensor) -> Tensor:
        """Predictions [B, C, h, w] of a model call -> the same shape."""
        return reduce(lambda value, hook: hook.adjust_prediction(step, call, value), self._hooks, prediction)

    def pack(self, step: Step, sums: Tensor) -> Tensor:
        """This rank's message of all hooks, flat int32 and of one length on all ranks."""
        messages = [hook.pack(step, sums) for hook in self._hooks]
        for hook, message in zip(self._hooks, messages, strict=True):
            size, planned = 0 if message is None else message.nbytes, hook.message_bytes(step.index)
            assert size == planned, f"{type(hook).__name__} sends {size} bytes; the plan has {planned}"
        self._packed = [None if message is None else (message.shape, message.dtype) for message in messages]
        parts = [_as_int32(message) for message in messages if message is not None]
        return torch.cat(parts) if parts else sums.new_empty(0)

    def unpack(self, step: Step, messages: Tensor) -> None:
        """Deal out the messages of all ranks, [world_size, n] int32."""
        start = 0
        for hook, packed in zip(self._hooks, self._packed, strict=True):
            if packed is None:
                hook.unpack(step, None)
                continue
            shape, dtype = packed
            end = start - (-shape.numel() * dtype.itemsize // 4)
            # A copy of its own, so that it may be read as numbers of any size.
            part = messages[:, start:end].clone(memory_format=torch.contiguous_format).view(dtype)
            hook.unpack(step, part[:, : shape.numel()].reshape(len(messages), *shape))
            start = end

    def adjust_fused(self, step: Step, prediction: Tensor) -> Tensor:
        """Fused prediction [C, area.height, area.width] -> the same shape; may be changed in place."""
        return reduce(lambda value, hook: hook.adjust_fused(step, value), self._hooks, prediction)

    def adjust_denoised(self, step: Step, denoised: Tensor) -> Tensor:
        """Estimate of x0 [C, area.height, area.width] -> the same shape."""
        return reduce(lambda value, hook: hook.adjust_denoised(step, value), self._hooks, denoised)

    def adjust_finished(self, x: Tensor, group: Group) -> Tensor:
        """Finished latents [C, area.height, area.width] -> the same shape; all ranks call it."""
        return reduce(lambda value, hook: hook.adjust_finished(value, group), self._hooks, x)

    def decoder_planes(self) -> Tensor | None:
        """[k, area.height, area.width] planes that go with the finished latents to the decoder."""
        planes = [part for hook in self._hooks if (part := hook.decoder_planes()) is not None]
        return torch.cat(planes) if planes else None


def _as_int32(message: Tensor) -> Tensor:
    """A message as flat int32, padded to whole numbers."""
    flat = message.contiguous().flatten()
    per_int32 = max(1, 4 // flat.element_size())
    return functional.pad(flat, (0, -len(flat) % per_int32)).view(torch.int32)
