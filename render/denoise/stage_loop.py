"""The step loop of one stage: predict windows, fuse, exchange borders, step once on the fused canvas.

A rank's step runs in this order: the windows that other ranks wait for; the start of the one all-gather; its
other windows while the gather is in flight; the wait; one sampler step on all latents that the rank holds.
Each rank that holds a latent steps it to the same bits, since the sums are integers and the sampler is
elementwise. What steers a step beside the model are the hooks of `render.guidance`; the loop knows their
protocol only (`render.guidance.hook`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor

from render.canvas import Canvas, Reference, cut_out, gather_planes
from render.denoise.batches import Batch, make_batches, make_call
from render.denoise.fusion import FixedPoint, add_predictions
from render.denoise.halo_exchange import make_halo_exchange
from render.denoise.model_calls import ModelCalls, SingleCalls
from render.denoise.replica import Replicas
from render.distributed import Group
from render.finite import check_prediction
from render.guidance.hook import GuidanceHook, StageContext, Step
from render.guidance.hooks import HOOKS, GuidanceHooks
from render.guidance.prediction_weights import condition_weights, stage_prompt_weights
from render.models.adapter import Adapter
from render.models.model_call import ModelCall
from render.plan.plan import StagePlan
from render.plan.stages import Stage
from render.plan.tiling import Tiling
from render.rect import Rect
from render.sampling.noise import stage_noise
from render.sampling.registry import find_sampler
from render.sampling.samplers import SamplerState, SamplerStep, to_denoised
from render.sampling.schedule import NoiseSchedule
from render.spec import Spec


@dataclass
class StepTimes:
    """Seconds that this rank spent in the phases of a step, and what it did in them."""

    model: float = 0.0
    wait: float = 0.0
    fuse: float = 0.0
    exchange: float = 0.0
    """Seconds from the start of the all-gather until its result was read; the model runs meanwhile. 0 on a
    single rank."""
    calls: int = 0
    """Model calls."""
    border_bytes: int = 0
    """Bytes of borders and guidance that this rank sent to the others, without its replica."""

    def phases(self) -> dict[str, float]:
        """The seconds that add up to the step."""
        return {"model": self.model, "wait": self.wait, "fuse": self.fuse}


_NO_STATE = torch.empty(0, dtype=torch.float16)
OnStep = Callable[[int, StepTimes], None]
"""Called after each step with the number of steps done and the step's times."""
BeforeStep = Callable[[Group], int]
"""Called before each step. Returns the control flags of this rank, which are OR-ed across ranks."""
AfterStep = Callable[["StageState", int], None]
"""Called after each step, on all ranks with the same control flags. May gather; may raise, on all ranks
alike."""
Regroup = Callable[[int, Group], Group]
"""Called between two steps. Returns the group to continue with; the same group changes nothing."""


@dataclass(frozen=True, kw_only=True)
class StageLoop:
    """Denoises the canvas of one stage. The constructor opens nothing; the group comes in as an argument."""

    plan: StagePlan
    """Of any world size; a group takes the one of its own."""
    schedule: NoiseSchedule
    adapter: Adapter
    texts: tuple[Any, ...]
    """The encoded prompts: the image's own, then those of its region prompts."""
    device: torch.device
    hooks: Sequence[type[GuidanceHook]] = HOOKS
    calls: ModelCalls = field(default_factory=SingleCalls)
    replicas: Replicas | None = None
    """Where the ranks keep each other's latents; None in a group that stays as it is."""

    @property
    def spec(self) -> Spec:
        """The spec of the image."""
        return self.plan.spec

    @property
    def stage(self) -> Stage:
        """The stage that is denoised."""
        return self.plan.stage

    def run(
        self,
        canvas: Canvas,
        group: Group,
        *,
        on_step: OnStep | None = None,
        regroup: Regroup | None = None,
        before_step: BeforeStep | None = None,
        after_step: AfterStep | None = None,
    ) -> StageState:
        """Step `canvas`, which holds at least the rank's box of the group's tiling, to the end of the stage.

        Returns the rank's state in the group that has finished the stage.
        Raises `NotFinite` when the model returns numbers that are not finite.
        """
        state = StageState(self, canvas, group)
        del canvas
        while state.steps_done < self.stage.steps:
            if regroup is not None:
                successor = regroup(state.steps_done, state.group)
                if successor.epoch != state.group.epoch:
                    state = StageState(self, state.gather(), successor)
            times, flags = state.step(0 if before_step is None else before_step(state.group))
            if on_step is not None:
                on_step(state.steps_done, times)
            if after_step is not None:
                after_step(state, flags)
        return state


@dataclass
class StageState:
    """What one rank holds of a stage for as long as the group stays the same."""

    loop: StageLoop
    canvas: InitVar[Canvas]
    group: Group
    steps_done: int = field(init=False)
    plan: StagePlan = field(init=False)
    """For the group's world size."""
    tiling: Tiling = field(init=False)
    area: Rect = field(init=False)
    """The part of the canvas that the rank holds, in latents."""
    sampler_state: SamplerState = field(init=False)
    """[C, area.height, area.width] tensors at the noise level of the step."""
    reference: Reference | None = field(init=False)
    """What the stage started from; None where no hook needs it."""
    hooks: GuidanceHooks = field(init=False)

    def __post_init__(self, canvas: Canvas) -> None:
        loop, rank = self.loop, self.group.rank
        self.steps_done = canvas.step
        self.plan = loop.plan.for_world_size(self.group.world_size)
        self.tiling = self.plan.tiling
        self.area = self.tiling.boxes[rank]
        own = cut_out(canvas.planes, canvas.area, self.area, self.tiling.surface)
        planes = own.to(loop.device, copy=True)
        self.sampler_state = SamplerState(planes[0], tuple(planes[1 : 1 + canvas.history]))
        self.reference = Reference(latents=planes[-2], colors=planes[-1]) if canvas.has_reference else None
        info = loop.adapter.info
        weights = condition_weights(self.tiling.passes, loop.spec.guidance(info) + info.guidance_offset)
        shares = stage_prompt_weights(loop.spec, loop.stage, self.area)
        self._fixed = FixedPoint.for_weights(weights)
        self._context = StageContext(
            spec=loop.spec,
            stage=loop.stage,
            schedule=loop.schedule,
            adapter=loop.adapter,
            texts=loop.texts,
            device=loop.device,
            tiling=self.tiling,
            rank=rank,
            condition_weights=weights,
            prompt_weights=None if shares is None else shares.to(loop.device),
            reference=self.reference,
            decode_sums=self._fixed.decode,
        )
        self.hooks = GuidanceHooks(self._context, loop.hooks)
        self.hooks.restore(self.steps_done, canvas.hook_state)
        self.hooks.prime(self.steps_done, self.sampler_state.x, self.group)
        if loop.replicas is not None:
            loop.replicas.begin(self.tiling, self.group, self.sampler_state.x, self.reference)

    def step(self, flags: int = 0) -> tuple[StepTimes, int]:
        """One step of the sampler on all latents that this rank holds.

        `flags` are the control flags of this rank. Returns the times, and the flags OR-ed across ranks.
        """
        stage, times = self.loop.stage, StepTimes()
        offset = stage.offset(self.loop.spec.seed_of(stage.index), self.steps_done)
        exchange = make_halo_exchange(self.tiling, self.group.rank, offset, self.loop.device)
        sums = torch.zeros(self.sampler_state.x.shape, dtype=torch.int32, device=self.loop.device)
        batches = make_batches(self.tiling, self.group.rank, offset, stage.batch, self.hooks.must_run_first)
        own, hook_state = self._own_latents()
        step = self._begin_step(times)

        self._predict(batches.first, step, offset, sums, times)
        gather_started = time.perf_counter()
        message = self.hooks.pack(step, sums)
        handle = exchange.start(sums.flatten(1), self.group, flags, message, own)
        del own
        self._predict(batches.rest, step, offset, sums, times)
        started = time.perf_counter()
        flags, messages, received = exchange.finish(handle, sums.flatten(1), flags, message)
        ended = time.perf_counter()
        if self.loop.replicas is not None:
            history = len(self.sampler_state.history)
            self.loop.replicas.keep(stage.index, self.steps_done, self.tiling, received, history, hook_state)
        times.wait += ended - started
        if handle is not None:
            times.exchange = ended - gather_started
            times.border_bytes = exchange.message_bytes(len(sums), message)

        started = time.perf_counter()
        self.hooks.unpack(step, messages)
        del message, messages, received
        prediction = [self.hooks.adjust_fused(step, self._fixed.decode(sums))]
        # Large tensors are dropped as soon as they are used up; hence the list, which passes the last
        # reference.
        del sums
        self._advance(step, prediction.pop())
        times.fuse += time.perf_counter() - started
        self.steps_done += 1
        return times, flags

    def gather(self, area: Rect | None = None) -> Canvas:
        """The canvas, or an area of it, on the host. All ranks must call it; their areas may differ."""
        requested = self.tiling.grid.whole if area is None else area
        planes = [self.sampler_state.x, *self.sampler_state.history]
        if self.reference is not None:
            planes += [self.reference.latents, self.reference.colors]
        return Canvas(
            step=self.steps_done,
            planes=gather_planes(torch.stack(planes), self.tiling, self.group, requested),
            area=requested,
            history=len(self.sampler_state.history),
            has_reference=self.reference is not None,
            hook_state=self.hooks.state(),
        )

    def finished(self, area: Rect) -> tuple[Tensor, Tensor | None]:
        """What decoding an area needs, on the host: the latents [C, ..], and the planes [k, ..] that the
        hooks pass to the decoder. All ranks must call it; their areas may differ."""
        latents = self.hooks.adjust_finished(self.sampler_state.x, self.group)
        extra = self.hooks.decoder_planes()
        planes = latents if extra is None else torch.cat([latents, extra])
        gathered = gather_planes(planes[None], self.tiling, self.group, area)[0]
        channels = len(latents)
        return gathered[:channels], None if extra is None else gathered[channels:]

    def _own_latents(self) -> tuple[Tensor | None, Tensor]:
        """What this rank sends of its own latents with the step, and the hooks' state before it."""
        if self.loop.replicas is None:
            return None, _NO_STATE
        own = self.loop.replicas.pack((self.sampler_state.x, *self.sampler_state.history), self.tiling)
        return own, _NO_STATE if own is None else self.hooks.state()

    def _begin_step(self, times: StepTimes) -> Step:
        index, schedule = self.steps_done, self.loop.schedule
        level, timestep = schedule.level(index), schedule.timesteps[index]
        step = Step(index=index, level=level, timestep=timestep, x=self.sampler_state.x)
        step.x = self.hooks.adjust_latents(step, step.x)
        self.sampler_state = SamplerState(step.x, self.sampler_state.history)
        self.hooks.before_step(step)
        times.model += step.model_seconds
        times.calls += step.model_calls
        return step

    def _predict(
        self, batches: list[Batch], step: Step, offset: tuple[int, int], sums: Tensor, times: StepTimes
    ) -> None:
        at_once = 1 if self.hooks.runs_calls else max(1, self.loop.stage.most_joined // self.loop.stage.batch)
        for start in range(0, len(batches), at_once):
            several = batches[start : start + at_once]
            predictions, seconds = self._call_model(several, step)
            ended = time.perf_counter()
            for batch, prediction in zip(several, predictions, strict=True):
                add_predictions(sums, self._context, self._fixed, batch, prediction, offset)
            times.model += seconds
            times.calls += len(several)
            times.fuse += time.perf_counter() - ended

    def _call_model(self, batches: Sequence[Batch], step: Step) -> tuple[list[Tensor], float]:
        """The predictions of each batch, and the seconds of the model that they took."""
        started = time.perf_counter()
        calls = [self.hooks.adjust_call(make_call(self._context, batch, step)) for batch in batches]
        if self.hooks.runs_calls:
            found = [self.hooks.predict(step, call, self._forward) for call in calls]
            seconds = time.perf_counter() - started
        else:
            answers, seconds = self.loop.calls.run(self.loop.adapter, calls, self.loop.stage.most_joined)
            found = [
                self.hooks.adjust_prediction(step, call, answer)
                for call, answer in zip(calls, answers, strict=True)
            ]
        predictions = [each[: len(batch)] for each, batch in zip(found, batches, strict=True)]
        for each in predictions:
            check_prediction(each, step.index, self.loop.stage.index, self.loop.plan.spec.dtype)
        return predictions, seconds

    def _forward(self, call: ModelCall) -> Tensor:
        return call.predict(self.loop.adapter)

    def _advance(self, step: Step, prediction: Tensor) -> None:
        """Step the sampler's state on the fused prediction."""
        loop = self.loop
        denoised = to_denoised(prediction, step.x, step.level, loop.adapter.prediction_type)
        del prediction
        sampler = find_sampler(loop.spec.sampler)
        self.sampler_state = sampler.step(
            SamplerStep(
                index=step.index,
                schedule=loop.schedule,
                state=self.sampler_state,
                denoised=self.hooks.adjust_denoised(step, denoised),
                noise=self._noise(step.index) if sampler.stochastic else None,
            )
        )

    def _noise(self, step: int) -> Tensor:
        stage, spec = self.loop.stage, self.loop.spec
        channels = len(self.sampler_state.x)
        noise = stage_noise(stage, spec.seed_of(stage.index), step, channels, self.area)
        return noise.to(self.loop.device)
