"""The hook protocol: what steers a denoising step beside the model.

`GuidanceHook` is the protocol and has a default for every method that changes nothing. A hook overrides what
it needs. The step loop (`render.denoise.stage_loop`) knows only this protocol. It calls the hooks of a stage
in the order of `render.guidance.hooks.HOOKS`, at these points:

    once per stage and group
        restore             state from a checkpoint or from the group before
        prime               before the first step; may gather
    at each step
        adjust_latents      before anything reads the latents
        before_step         may call the model
        must_run_first      sorts the rank's evaluations: those that others wait for come first
        adjust_call         before each model call
        predict             around each model call
        adjust_prediction   after each model call
        pack                before the step's one all-gather starts
        unpack              after the all-gather has ended
        adjust_fused        the fused prediction of all windows
        adjust_denoised     the estimate of x0 that the sampler steps on
    between two steps, and after the last one
        state               for a checkpoint, or for a group of another size
        adjust_finished     the finished latents; may gather
        decoder_planes      what decoding needs beside the finished latents

Promise 1 of the design holds for hooks too: a pixel must not depend on the number of ranks. So a hook
exchanges bits or integer sums, never floating-point sums, and latents that several ranks hold get the same
values on each of them.

To add a hook, write a class in a file of its own and put it into `HOOKS` at the place where its arithmetic
belongs. `render.guidance.kept_pixels` is one that replaces latents, before a step and in the estimate of x0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from render.canvas import Reference, cut_out
from render.distributed import Group
from render.models.adapter import Adapter
from render.models.model_call import Evaluation, ModelCall
from render.plan.stages import Stage
from render.plan.tiling import Tiling
from render.rect import Rect
from render.sampling.process import NoiseLevel
from render.sampling.schedule import NoiseSchedule
from render.spec import Spec


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a hook may read of the stage that it steers. It stays the same as long as the group does."""

    spec: Spec
    stage: Stage
    schedule: NoiseSchedule
    adapter: Adapter
    texts: Sequence[Any]
    """The encoded prompts: the image's own, then those of its region prompts."""
    device: torch.device
    tiling: Tiling
    rank: int
    condition_weights: tuple[float, ...]
    """Weight of each condition's prediction (classifier-free guidance)."""
    prompt_weights: Tensor | None
    """[layers, area.height, area.width]: weight of each prompt's prediction; None where there is only one."""
    reference: Reference | None
    """What the stage started from, before it was noised; None where no hook needs it."""
    decode_sums: Callable[[Tensor], Tensor]
    """Fixed-point sums of predictions -> float32."""

    @property
    def area(self) -> Rect:
        """The part of the canvas that this rank holds, in latents."""
        return self.tiling.boxes[self.rank]

    @property
    def guidance_scale(self) -> float:
        """The scale of classifier-free guidance."""
        return self.spec.guidance(self.adapter.info)

    def cut(self, planes: Tensor, window: Rect) -> Tensor:
        """A window [.., window.height, window.width] of planes [.., area.height, area.width]."""
        return cut_out(planes, self.area, window, self.tiling.surface)


@dataclass(kw_only=True)
class Step:
    """One step of the sampler on what this rank holds."""

    index: int
    level: NoiseLevel
    """The noise level of `x`."""
    timestep: float
    x: Tensor
    """[C, area.height, area.width] latents, after `adjust_latents`."""
    model_calls: int = 0
    """Model calls that hooks have made on their own."""
    model_seconds: float = 0.0
    """The time that they took."""


Predict = Callable[[ModelCall], Tensor]
"""A model call -> its predictions [B, C, h, w], float32."""


class GuidanceHook:
    """Steers the steps of one stage on one rank. The defaults change nothing."""

    @classmethod
    def needs_reference(cls, spec: Spec, stage: Stage) -> bool:
        """Whether the hook reads `StageContext.reference` at a stage that starts from another image."""
        return False

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        """The hook of a stage; None where the spec does not ask for it."""
        raise NotImplementedError

    def restore(self, step: int, state: Tensor) -> None:
        """Take what `state` has returned before `step`, flat float16 on the rank's device."""

    def state_length(self, step: int) -> int:
        """Numbers that `state` returns before `step`. It must follow from the plan alone."""
        return 0

    def state(self) -> Tensor | None:
        """What the next step needs from the steps before, flat float16, the same on every rank.

        None where there is nothing. It must not depend on the number of ranks.
        """
        return None

    def prime(self, step: int, x: Tensor, group: Group) -> None:
        """Prepare before the first step that this group makes; `x` is [C, area.height, area.width].

        All ranks call it, so it may gather.
        """

    def adjust_latents(self, step: Step, x: Tensor) -> Tensor:
        """Change the latents [C, area.height, area.width] before the step."""
        return x

    def before_step(self, step: Step) -> None:
        """Prepare a step, before any window is evaluated."""

    def must_run_first(self, evaluation: Evaluation) -> bool:
        """Whether `pack` needs the result, so that it is evaluated before the all-gather starts.

        It must follow from the plan alone.
        """
        return False

    def adjust_call(self, call: ModelCall) -> ModelCall:
        """Change a model call before it runs. Calls may still run as one then; where a hook has a `predict`
        of its own, each runs by itself."""
        return call

    def predict(self, call: ModelCall, forward: Predict) -> Tensor:
        """Run a model call. `forward` runs it without this hook; the call may be changed on the way."""
        return forward(call)

    def adjust_prediction(self, step: Step, call: ModelCall, prediction: Tensor) -> Tensor:
        """Change the predictions [B, C, h, w] of a model call."""
        return prediction

    def message_bytes(self, step: int) -> int:
        """Size of what `pack` returns at a step. It must follow from the plan alone, alike for all ranks."""
        return 0

    def pack(self, step: Step, sums: Tensor) -> Tensor | None:
        """What this rank sends to all ranks in the step's one all-gather; None for nothing.

        `sums` is [C, area.height, area.width] int32, the fixed-point sums of the predictions so far. They are
        complete for windows for which `must_run_first` is true on any rank.
        """
        return None

    def unpack(self, step: Step, messages: Tensor | None) -> None:
        """Take the messages of all ranks, [world_size, *message.shape]; None if `pack` returned none."""

    def adjust_fused(self, step: Step, prediction: Tensor) -> Tensor:
        """Change the fused prediction [C, area.height, area.width]. It may be changed in place."""
        return prediction

    def adjust_denoised(self, step: Step, denoised: Tensor) -> Tensor:
        """Change the estimate of x0 [C, area.height, area.width]."""
        return denoised

    def adjust_finished(self, x: Tensor, group: Group) -> Tensor:
        """Change the finished latents [C, area.height, area.width], not in place.

        All ranks call it, so it may gather. It may be called again for the same latents.
        """
        return x

    def decoder_planes(self) -> Tensor | None:
        """[k, area.height, area.width] planes that decoding needs beside the finished latents."""
        return None
