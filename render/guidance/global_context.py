"""What a rank hears of the whole canvas, beside its neighbours' borders, and what it says for that.

Two parts, each there when the spec asks for it: the pooled tokens of all windows (`pooled`) and the dilated
views (`dilated`). Both cross in the step's one gather, in half precision, and are one step old; what has
been heard is the same on all ranks, so any rank can keep it in a checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from render.denoise.fusion import pass_weights
from render.distributed import Group, all_gather_fp16
from render.errors import RenderFailed
from render.guidance.dilated_views import DilatedViews
from render.guidance.pooled_tokens import Call, PooledTokens
from render.models.adapter import WindowPlace
from render.plan.communication import canvas_crosses, tokens_cross
from render.plan.decay import decayed_strength
from render.plan.dilation import views_taken
from render.plan.geometry import Rect
from render.plan.tiling import Tiling
from render.plan.token_sources import TokenSource, token_sources
from render.sampling import samplers

if TYPE_CHECKING:
    from render.denoise.stage_loop import StageLoop, StepTimes


@dataclass
class GlobalContext:
    """One rank's part in it, for as long as its seat stands."""

    loop: StageLoop
    tiling: Tiling
    rank: int
    step: int
    said: InitVar[Tensor | None]
    """What `heard` gave before this step, in this seat's place or another's; None at a stage's first."""
    tokens: PooledTokens | None = field(init=False)
    views: DilatedViews | None = field(init=False)
    _answers: Tensor | None = field(default=None, init=False)
    """What this rank's views have answered at this step."""

    def __post_init__(self, said: Tensor | None) -> None:
        spec, stage, grid = self.loop.spec, self.loop.stage, self.tiling.grid
        table = echo = None
        if said is not None and len(said):
            said = said.to(self.loop.device)
            echo_length = self._channels * grid.height * grid.width
            if canvas_crosses(spec, stage, self.step - 1):
                echo = said[-echo_length:].view(self._channels, grid.height, grid.width)
                said = said[:-echo_length]
            if tokens_cross(spec, stage, self.tiling, self.step - 1):
                table = said.view(-1, self.loop.adapter.info.token_width)
        self.tokens, self.views = None, None
        if spec.cross_attention and any(token_sources(self.tiling)):
            self.tokens = PooledTokens(
                self.loop.adapter,
                self.tiling,
                self.rank,
                spec.cross_attention,
                spec.cross_attention_form,
                table,
            )
        if stage.dilation is not None:
            self.views = DilatedViews(stage.dilation, self.tiling, self.rank, echo)

    def open(self, x: Tensor, box: Rect, group: Group) -> None:
        """Before a stage's first step, outside of any: gather what its views look at; `x` is [C, box]."""
        if self.views is None or self.views.echo is not None or self.step != self.loop.stage.first_step:
            return
        said = self._spoken(self.views, x, box).flatten()
        heard = all_gather_fp16(group, said)
        self.views.hear_canvas(heard.reshape(group.world_size, self._channels, -1))

    @property
    def heard(self) -> Tensor:
        """All that has been heard for the next step, flat, on the host: a checkpoint's part."""
        parts = [] if self.tokens is None else [self.tokens.table]
        parts += [] if self.views is None else [self.views.echo]
        flat = [part.flatten().cpu() for part in parts if part is not None]
        return torch.cat(flat) if flat else torch.empty(0, dtype=torch.float16)

    def speaks(self, voice: TokenSource) -> bool:
        """Whether this rank has to evaluate it before the gather starts."""
        return self.tokens is not None and self.tokens.speaks(voice)

    def begin(self, step: int, times: StepTimes) -> None:
        """Before a step's windows: evaluate the views."""
        self.step, self._answers = step, None
        if self.tokens is not None:
            self.tokens.begin(self.loop.stage, step, self.loop.device)
        if self.views is not None and self._looks:
            started = time.perf_counter()
            self._answers = self.views.look(self.loop.stage, step, lambda views: self._look(views, times))
            times.model += time.perf_counter() - started

    def predict(self, batch: list[TokenSource], *call: *Call) -> Tensor:
        """`Adapter.predict(*call)`, for rows of which the first are `batch`."""
        if self.tokens is None:
            return self.loop.adapter.predict(*call)
        return self.tokens.predict(batch, *call)

    def say(self, x: Tensor, box: Rect) -> Tensor:
        """This rank's message, float16, of one length on all ranks; `x` is [C, box] before the step."""
        parts = []
        if self.tokens is not None and self._says_tokens:
            parts.append(self.tokens.say())
        if self._answers is not None:
            parts.append(self._answers.flatten())
        if self.views is not None and self._says_canvas:
            parts.append(self._spoken(self.views, x, box).flatten())
        return torch.cat(parts) if parts else x.new_empty(0, dtype=torch.float16)

    def hear(self, messages: Tensor, box: Rect) -> None:
        """Take all ranks' messages, [world_size, length] float16."""
        world, at = len(messages), 0
        if self.tokens is not None:
            self.tokens.table = None
            if self._says_tokens:
                at = self.tokens.numbers
                self.tokens.hear(messages[:, :at])
        if self.views is not None:
            if self._answers is not None:
                end = at + self._answers.numel()
                self.views.hear_answers(messages[:, at:end].reshape(world, *self._answers.shape), box)
                at = end
            self.views.echo = None
            if self._says_canvas:
                self.views.hear_canvas(messages[:, at:].reshape(world, self._channels, -1))

    def guide(self, denoised: Tensor, own_share: Tensor | None) -> Tensor:
        """[C, box] denoised predictions of the windows, mixed with the views'.

        `own_share` [box] is what the image's own prompt counts, which the views are of; None is all of it.
        """
        if self.views is None or self._answers is None or self.views.answer is None:
            return denoised
        share = decayed_strength(self.loop.spec.dilated, self.loop.stage, self.step)
        answer, self.views.answer = self.views.answer, None
        if own_share is None:
            return denoised * (1.0 - share) + answer * share
        mask = own_share * share
        return denoised * (1.0 - mask) + answer * mask

    @property
    def _channels(self) -> int:
        return self.loop.adapter.info.latent_channels

    @property
    def _looks(self) -> bool:
        return views_taken(self.loop.spec.dilated, self.loop.stage, self.step)

    @property
    def _says_tokens(self) -> bool:
        return tokens_cross(self.loop.spec, self.loop.stage, self.tiling, self.step)

    @property
    def _says_canvas(self) -> bool:
        return canvas_crosses(self.loop.spec, self.loop.stage, self.step)

    def _spoken(self, views: DilatedViews, x: Tensor, box: Rect) -> Tensor:
        return views.speak(x * samplers.input_scale(self.loop.schedule.sigmas[self.step]), box)

    def _look(self, views: Tensor, times: StepTimes) -> Tensor:
        """Denoised predictions of whole pictures [n, C, h, w], under the image's own prompt, at the noise
        of the step at which they were seen."""
        loop, size, passes = self.loop, self.loop.stage.view_batch, self.tiling.passes
        seen = max(self.step - 1, loop.stage.first_step)
        sigma = loop.schedule.sigmas[seen]
        rows = [(view, turn) for view in range(len(views)) for turn in range(passes)]
        sums = torch.zeros_like(views)
        guidance = loop.spec.guidance(loop.adapter.info)
        weights = pass_weights(passes, guidance)
        for at in range(0, len(rows), size):
            batch = rows[at : at + size]
            filled = batch + [batch[-1]] * (size - len(batch))
            prediction = loop.adapter.predict(
                views[[view for view, _ in filled]],
                loop.schedule.timesteps[seen],
                loop.texts[0],
                [self._whole_picture()] * size,
                [turn for _, turn in filled],
                guidance,
            )
            times.calls += 1
            if not bool(torch.isfinite(prediction[: len(batch)]).all()):
                raise RenderFailed(
                    f"the model answered with numbers that are not finite at step {self.step} of stage "
                    f"{loop.stage.index}; try --dtype float32"
                )
            for (view, turn), answer in zip(batch, prediction, strict=False):
                sums[view] += answer * weights[turn]
        x = views / samplers.input_scale(sigma)
        return samplers.to_denoised(sums, x, sigma, loop.adapter.prediction_type)

    def _whole_picture(self) -> WindowPlace:
        dilation, pixel = self.loop.stage.dilation, self.loop.adapter.info.scale_factor
        assert dilation is not None
        height, width = dilation.height * pixel, dilation.width * pixel
        return WindowPlace(
            picture_height=height, picture_width=width, pixel_y=0, pixel_x=0, height=height, width=width
        )
