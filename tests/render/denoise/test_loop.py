"""The step loop: one rank is the oracle; groups may change between two steps."""

import pytest
import torch

from render.denoise.cascade import first_canvas
from render.denoise.group import Group, SoloGroup
from render.denoise.loop import Regroup, StageLoop
from render.engine import render_latents
from render.errors import RenderFailed
from render.plan.stages import make_stages
from render.spec import BLENDS, SAMPLERS, Spec
from tests.support.groups import ThreadGroup, run_ranks, thread_groups
from tests.support.models import ToyModel

CPU = torch.device("cpu")


def spec_of(**changes: object) -> Spec:
    values = {"prompt": "a red vase", "width": 448, "height": 320, "steps": 6, "seed": 3, **changes}
    return Spec(**values)  # type: ignore[arg-type]


def latents_of(spec: Spec, group: Group, regroup: Regroup | None = None) -> torch.Tensor:
    return render_latents(spec, ToyModel(), group, device=CPU, regroup=regroup)[0]


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("ranks", [2, 3, 5, 40])
def test_ranks_do_not_change_a_bit(blend: str, sampler: str, ranks: int) -> None:
    spec = spec_of(blend=blend, sampler=sampler)
    alone = latents_of(spec, SoloGroup())
    for together in run_ranks(ranks, lambda group: latents_of(spec, group)):
        assert torch.equal(alone, together)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("sampler", ["dpmpp-2m", "euler-ancestral"])
@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (4, 1)])
def test_a_group_can_change_in_the_middle_of_an_image(
    blend: str, sampler: str, before: int, after: int
) -> None:
    """Between two steps ranks leave or come; the canvas is dealt out anew, to the same picture."""
    spec = spec_of(blend=blend, sampler=sampler)
    stage = make_stages(spec, ToyModel().facts)[-1]
    alone = latents_of(spec, SoloGroup())
    successors = thread_groups(after, epoch=1)
    change_at = stage.first_step + 1

    class Left(Exception):
        pass

    def work(group: ThreadGroup) -> torch.Tensor | None:
        def regroup(step: int, now: Group) -> Group:
            final_stage = len(seen) == 2
            if now.epoch == 1 or not final_stage or step < change_at:
                return now
            if now.rank >= after:
                return _Leaver(now)
            return successors[now.rank]

        seen: list[object] = []
        try:
            return render_latents(
                spec,
                ToyModel(),
                group,
                device=CPU,
                regroup=regroup,
                on_news=lambda news: seen.append(news) if news["kind"] == "stage" else None,
            )[0]
        except _Gone:
            return None

    if after > before:
        pytest.skip("a rank that comes starts from a checkpoint; see test_a_newcomer_starts_from_the_canvas")
    results = [result for result in run_ranks(before, work) if result is not None]
    assert len(results) == after
    assert all(torch.equal(alone, result) for result in results)


class _Gone(Exception):
    """Raised on a rank that has left, in place of the end of its process."""


class _Leaver:
    """The group of a rank that leaves: its first use ends the rank."""

    epoch = 1

    def __init__(self, old: Group) -> None:
        self.rank, self.world_size = 0, old.world_size

    def all_gather(self, block: torch.Tensor) -> None:
        raise _Gone

    def all_gather_bytes(self, data: bytes) -> None:
        raise _Gone


@pytest.mark.parametrize("blend", BLENDS)
def test_a_newcomer_starts_from_the_canvas(blend: str) -> None:
    """A canvas between two steps is all that another group of another size needs to go on."""
    spec = spec_of(blend=blend, sampler="dpmpp-2m", width=320, height=320)
    model = ToyModel()
    stage = make_stages(spec, model.facts)[-1]
    schedule = model.schedule(spec.sampler, spec.steps)

    def loop() -> StageLoop:
        return StageLoop(spec=spec, stage=stage, schedule=schedule, adapter=ToyModel(), text=0.1, device=CPU)

    class Stop(Exception):
        pass

    start = first_canvas(stage, schedule, spec.seed, model.facts.latent_channels)
    whole, _ = loop().run(start, SoloGroup())
    kept = {}

    def stop_at_three(step: int, group: Group) -> Group:
        if step == 3 and group.epoch == 0:
            return SoloGroup(epoch=1)
        return group

    resumed, group = loop().run(start, SoloGroup(), regroup=stop_at_three)
    assert group.epoch == 1 and torch.equal(resumed.planes, whole.planes)
    kept.update(canvas=resumed)


def test_every_model_call_has_one_shape_per_stage() -> None:
    model = ToyModel()
    render_latents(spec_of(window_batch=3), model, SoloGroup(), device=CPU)
    assert len(set(model.calls)) == len(make_stages(spec_of(), model.facts))


def test_a_model_that_answers_nan_fails_the_render() -> None:
    class Broken(ToyModel):
        def predict(self, latents: torch.Tensor, *rest: object) -> torch.Tensor:  # type: ignore[override]
            return torch.full_like(latents, torch.nan)

    with pytest.raises(RenderFailed, match="not finite at step 0 of stage 0"):
        render_latents(spec_of(), Broken(), SoloGroup(), device=CPU)
