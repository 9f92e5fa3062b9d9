"""Schedules are the stock schedulers'; what does not fit them is one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from render.errors import BadInput
from render.sampling.diffusers_schedule import noise_schedule
from render.spec import SAMPLERS

CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 25, 50])
def test_sigmas_fall_and_there_is_one_more_than_timesteps(sampler: str, steps: int) -> None:
    schedule = noise_schedule(CONFIG, sampler, steps)
    assert len(schedule.timesteps) == steps and len(schedule.sigmas) == steps + 1
    assert list(schedule.sigmas) == sorted(schedule.sigmas, reverse=True)
    assert schedule.sigmas[0] > schedule.sigmas[-1] and min(schedule.sigmas[:-1]) > 0
    assert schedule.initial_scale >= schedule.sigmas[0]


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"lcm"}))
@pytest.mark.parametrize("steps", [61, 103, 457])
def test_trailing_spacing_has_no_step_too_many(sampler: str, steps: int) -> None:
    # diffusers' own schedulers make one more of these, at timestep -1.
    schedule = noise_schedule(CONFIG | {"timestep_spacing": "trailing"}, sampler, steps)
    assert len(schedule.timesteps) == steps and len(schedule.sigmas) == steps + 1
    assert min(schedule.timesteps) >= 0.0 and schedule.sigmas[-1] < 0.03


def test_ddim_ends_at_the_models_smallest_sigma_unless_alpha_is_set_to_one() -> None:
    assert noise_schedule(CONFIG, "ddim", 10).sigmas[-1] == 0.0
    ends = noise_schedule(CONFIG | {"set_alpha_to_one": False}, "ddim", 10)
    assert 0.02 < ends.sigmas[-1] < 0.04 and 0.999 < ends.final_scale < 1.0


def test_a_model_of_zero_terminal_snr_has_finite_sigmas() -> None:
    config = CONFIG | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for sampler in SAMPLERS:
        assert max(noise_schedule(config, sampler, 10).sigmas) <= 4097.0


@pytest.mark.parametrize(
    ("sampler", "steps", "limit"), [("lcm", 51, 50), ("ddim", 1000, 999), ("ddim", 1001, 999)]
)
def test_more_steps_than_a_model_has_are_refused(sampler: str, steps: int, limit: int) -> None:
    with pytest.raises(
        BadInput, match=f"steps: {steps} do not fit the {sampler} sampler; use at most {limit}"
    ):
        noise_schedule(CONFIG, sampler, steps)
    noise_schedule(CONFIG, sampler, limit)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(BadInput, match="sampler: 'heun' is unknown"):
        noise_schedule(CONFIG, "heun", 10)
