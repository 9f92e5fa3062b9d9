"""Stages and plans of pictures of all shapes."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from render.model_info import ModelInfo
from render.plan.plan import make_plan
from render.plan.stages import make_stages
from render.spec import BLENDS, Spec

FACTS = ModelInfo(
    guidance_scale=2.0,
    family="toy",
    latent_channels=4,
    scale_factor=8,
    native_size=128,
    digest="d",
    decode_halo=2,
)
SPECS = st.builds(
    Spec,
    prompt=st.just("x"),
    width=st.integers(1, 300).map(lambda side: side * 8),
    height=st.integers(1, 300).map(lambda side: side * 8),
    steps=st.integers(1, 60),
    strength=st.floats(0.01, 1.0),
    blend=st.sampled_from(BLENDS),
    window_batch=st.integers(1, 8),
)


@given(SPECS)
def test_stages_double_and_land_on_the_asked_size(spec: Spec) -> None:
    stages = make_stages(spec, FACTS)
    assert (stages[-1].width, stages[-1].height) == (spec.width, spec.height)
    assert stages[0].first_step == 0
    for before, after in pairwise(stages):
        for small, large in ((before.width, after.width), (before.height, after.height)):
            assert abs(large - 2 * small) <= 16 or small == 8
        assert 0 <= after.first_step < after.steps
    for stage in stages:
        window = stage.grid.rows.window * stage.grid.cols.window
        assert window <= 2 * 16 * 16
        assert 1 <= stage.batch <= max(stage.grid.windows * stage.passes, spec.window_batch or 1)
        assert window % 128 == 0 or stage.batch == 1 or stage.batch % 2 == 0


@given(SPECS)
def test_the_first_stage_is_about_native(spec: Spec) -> None:
    stages = make_stages(spec, FACTS)
    if len(stages) > 1 and max(spec.width, spec.height) <= 2 * min(spec.width, spec.height):
        area = stages[0].width * stages[0].height / 128**2
        assert 0.45 <= area <= 2.3


@settings(max_examples=30)
@given(SPECS, st.integers(1, 16))
def test_the_plan_adds_up(spec: Spec, ranks: int) -> None:
    plan = make_plan(spec, FACTS, ranks)
    for stage in plan.stages:
        assert sum(stage.evaluations_per_rank) == stage.windows * stage.stage.passes
        assert max(stage.evaluations_per_rank) - min(stage.evaluations_per_rank) <= 1
        assert all(
            (calls - 1) * stage.stage.batch < evaluations <= calls * stage.stage.batch
            for calls, evaluations in zip(stage.calls_per_step, stage.evaluations_per_rank, strict=True)
        )
        assert ranks > 1 or stage.border_bytes == (0,)
    calls = [-(-stage.windows * stage.stage.passes // stage.stage.batch) for stage in plan.stages]
    assert plan.useful_ranks == max(calls)


def test_batches_suit_several_numbers_of_ranks() -> None:
    spec = Spec(prompt="x", width=1024, height=1024)
    one, two = (make_plan(spec, FACTS, ranks).stages for ranks in (1, 2))
    assert [stage.stage.batch for stage in one] == [2, 3, 7, 16]
    calls = [[max(stage.calls_per_step) for stage in each] for each in (one, two)]
    assert [2 * each for each in calls[1]] == [2, *calls[0][1:]], (
        "the one window of the first stage is one call"
    )


def test_images_of_one_window_share_calls() -> None:
    native = Spec(prompt="x", width=128, height=128)
    plans = [make_plan(replace(native, window_batch=rows), FACTS, 1) for rows in (None, 1, 2, 16)]
    assert [plan.stages[0].stage.batch for plan in plans] == [2, 1, 2, 16]
    assert [plan.useful_ranks for plan in plans] == [1, 2, 1, 1]
    assert [plan.images_at_once for plan in plans] == [16, 1, 1, 8]


def test_offsets_depend_on_seed_and_step_alone() -> None:
    spec = Spec(prompt="x", width=512, height=512, blend="shift")
    stage = make_stages(spec, FACTS)[-1]
    drawn = [stage.offset(7, step) for step in range(25)]
    assert drawn == [stage.offset(7, step) for step in range(25)]
    assert len(set(drawn)) > 15
    assert drawn != [stage.offset(8, step) for step in range(25)]
