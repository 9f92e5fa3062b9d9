"""The hook protocol: a new hook steers a step without a change of the step loop."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import pytest
import torch
from torch import Tensor

from render.canvas import Canvas
from render.denoise import batches, fusion, halo_exchange, stage_loop
from render.denoise.stage_loop import StageLoop, StageState
from render.denoise.upscaling import first_canvas
from render.distributed import AllGatherHandle, Group, SingleRankGroup
from render.guidance.hook import GuidanceHook, Predict, StageContext, Step
from render.guidance.hooks import HOOKS
from render.models.model_call import Evaluation, ModelCall
from render.plan.plan import StagePlan
from render.plan.stages import make_stages
from render.spec import BLENDS, Spec
from tests.render.denoise.test_stage_loop import spec_of
from tests.support.groups import ThreadGroup, run_ranks
from tests.support.models import ToyModel

CPU = torch.device("cpu")


class MeanPrediction(GuidanceHook):
    """A toy hook: adds the mean of each source's prediction at the step before, over all ranks, to x0.

    Its numbers are integers, so they do not depend on the number of ranks. It uses every method.
    """

    calls: ClassVar[list[str]] = []

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._channels = context.adapter.info.latent_channels
        self._own = torch.zeros(self._channels, dtype=torch.int64)
        self._total: Tensor | None = None
        self._shift = torch.zeros(self._channels, dtype=torch.float16)

    @classmethod
    def create(cls, context: StageContext) -> Self:
        return cls(context)

    def _called(self, name: str) -> None:
        if self._context.rank == 0:
            self.calls.append(name)

    def restore(self, step: int, state: Tensor) -> None:
        self._called("restore")
        self._shift = state

    def state_length(self, step: int) -> int:
        return self._channels

    def state(self) -> Tensor:
        return self._shift

    def prime(self, step: int, x: Tensor, group: Group) -> None:
        self._called("prime")
        assert x.shape[1:] == (self._context.area.height, self._context.area.width)

    def adjust_latents(self, step: Step, x: Tensor) -> Tensor:
        self._called("adjust_latents")
        return x * 0.999

    def before_step(self, step: Step) -> None:
        self._called("before_step")
        self._own = torch.zeros(self._channels, dtype=torch.int64)

    def must_run_first(self, evaluation: Evaluation) -> bool:
        return evaluation.condition == 0

    def adjust_call(self, call: ModelCall) -> ModelCall:
        self._called("adjust_call")
        return replace(call, latents=call.latents * 1.001)

    def predict(self, call: ModelCall, forward: Predict) -> Tensor:
        self._called("predict")
        prediction = forward(call) * 1.01
        for evaluation, row in zip(call.evaluations, prediction, strict=False):
            if self.must_run_first(evaluation):
                self._own += (row.mean((1, 2)) * 2**20).long()
        return prediction

    def adjust_prediction(self, step: Step, call: ModelCall, prediction: Tensor) -> Tensor:
        self._called("adjust_prediction")
        return prediction.clamp(-3.0, 3.0)

    def message_bytes(self, step: int) -> int:
        return self._channels * 8

    def pack(self, step: Step, sums: Tensor) -> Tensor:
        self._called("pack")
        return self._own

    def unpack(self, step: Step, messages: Tensor | None) -> None:
        self._called("unpack")
        assert messages is not None and messages.shape[1:] == self._own.shape
        self._total = messages.sum(0)

    def adjust_fused(self, step: Step, prediction: Tensor) -> Tensor:
        self._called("adjust_fused")
        return prediction * 0.99

    def adjust_denoised(self, step: Step, denoised: Tensor) -> Tensor:
        self._called("adjust_denoised")
        assert self._total is not None
        before = self._shift.float()[:, None, None]
        windows = self._context.tiling.windows
        self._shift = (self._total.double() / 2**20 / windows).half()
        return denoised + before * 0.1

    def decoder_planes(self) -> Tensor:
        area = self._context.area
        return self._shift.float()[:1, None, None].expand(1, area.height, area.width)


def last_stage(spec: Spec) -> tuple[StageLoop, Canvas]:
    """The last stage of a spec with the toy hook, from pure noise."""
    model = ToyModel()
    stage = replace(make_stages(spec, model.info)[-1], first_step=0)
    schedule = model.schedule(spec.sampler, spec.steps)
    loop = StageLoop(
        plan=StagePlan(spec=spec, info=model.info, stage=stage),
        schedule=schedule,
        adapter=model,
        texts=(0.1,),
        device=CPU,
        hooks=(*HOOKS, MeanPrediction),
    )
    return loop, first_canvas(stage, schedule, spec.seed, 4, stage.grid.whole)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("changes", [{}, {"cross_attention": 0.5, "dilated": 0.4}])
def test_a_new_hook_steers_a_step_and_does_not_depend_on_the_number_of_ranks(
    blend: str, changes: dict[str, object]
) -> None:
    loop, start = last_stage(spec_of(blend=blend, width=320, height=240, steps=4, **changes))
    alone = loop.run(start, SingleRankGroup())
    plain = replace(loop, hooks=HOOKS).run(start, SingleRankGroup())
    assert not torch.equal(alone.gather().latents, plain.gather().latents)

    def work(group: Group) -> tuple[Canvas, tuple[Tensor, Tensor | None]]:
        state = replace(loop, adapter=ToyModel()).run(start, group)
        return state.gather(), state.finished(loop.stage.grid.whole)

    expected, planes = alone.gather(), alone.finished(loop.stage.grid.whole)[1]
    assert planes is not None and planes.shape[0] == 1
    for canvas, (latents, extra) in run_ranks(3, work):
        assert torch.equal(canvas.latents, expected.latents) and torch.equal(latents, expected.latents)
        assert canvas.hook_state is not None and expected.hook_state is not None
        assert torch.equal(canvas.hook_state, expected.hook_state)
        assert extra is not None and torch.equal(extra, planes)


def test_the_state_of_a_new_hook_goes_to_the_next_group() -> None:
    loop, start = last_stage(spec_of(width=320, height=240, steps=4, cross_attention=0.5, dilated=0.4))
    alone = loop.run(start, SingleRankGroup()).gather().latents
    successor = SingleRankGroup(epoch=1)
    for step in range(4):

        def regroup(done: int, now: Group, at: int = step) -> Group:
            return successor if done == at else now

        state = loop.run(start, SingleRankGroup(), regroup=regroup)
        assert state.group.epoch == 1
        assert torch.equal(state.gather().latents, alone)


def test_the_points_of_a_step_have_a_fixed_order() -> None:
    loop, start = last_stage(spec_of(width=112, height=80, steps=2))
    MeanPrediction.calls.clear()
    StageState(loop, start, SingleRankGroup()).step()
    order = list(dict.fromkeys(MeanPrediction.calls))
    assert order == [
        "prime",
        "adjust_latents",
        "before_step",
        "adjust_call",
        "predict",
        "adjust_prediction",
        "pack",
        "unpack",
        "adjust_fused",
        "adjust_denoised",
    ]


def test_a_step_still_has_one_gather() -> None:
    loop, start = last_stage(spec_of(width=320, height=240, steps=4))
    gathers: list[int] = []

    class Counting(ThreadGroup):
        def all_gather(self, block: Tensor) -> AllGatherHandle:
            if self.rank == 0:
                gathers.append(block.numel())
            return super().all_gather(block)

    counts: list[int] = []

    def work(group: ThreadGroup) -> None:
        counting = Counting(group.rank, group.meeting)

        def on_step(done: int, times: object) -> None:
            if group.rank == 0:
                counts.append(len(gathers))

        loop.run(start, counting, on_step=on_step)

    run_ranks(2, work)
    assert counts == [1, 2, 3, 4]


def test_a_message_of_another_size_than_planned_is_an_error() -> None:
    class Silent(MeanPrediction):
        def message_bytes(self, step: int) -> int:
            return 0

    loop, start = last_stage(spec_of(width=112, height=80, steps=2))
    with pytest.raises(AssertionError, match="Silent sends 32 bytes; the plan has 0"):
        replace(loop, hooks=(Silent,)).run(start, SingleRankGroup())


def test_a_hook_is_created_only_where_the_spec_asks_for_it() -> None:
    created: list[type[GuidanceHook]] = []

    def recorded(hook: type[GuidanceHook]) -> type[GuidanceHook]:
        class Recorded(hook):  # type: ignore[valid-type, misc]
            @classmethod
            def create(cls, context: StageContext) -> GuidanceHook | None:
                made: GuidanceHook | None = hook.create(context)
                if made is not None:
                    created.append(hook)
                return made

        return Recorded

    loop, start = last_stage(spec_of(width=112, height=80, steps=2))
    StageState(replace(loop, hooks=[recorded(hook) for hook in HOOKS]), start, SingleRankGroup())
    assert created == []


def test_the_step_loop_names_no_hook() -> None:
    names = {hook.__name__ for hook in HOOKS} | {hook.__module__ for hook in HOOKS}
    for module in (stage_loop, batches, fusion, halo_exchange):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert not [name for name in names if name in source], module
