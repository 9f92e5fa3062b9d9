"""The samplers alone: their algebra, and that their bits do not depend on a tensor's shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from render.errors import BadInput
from render.sampling import registry
from render.sampling.process import NoiseLevel
from render.sampling.registry import find_sampler
from render.sampling.samplers import SamplerState, SamplerStep, to_denoised
from render.sampling.schedule import NoiseSchedule
from render.spec import SAMPLERS

SCHEDULE = NoiseSchedule(timesteps=(999.0, 600.0, 200.0), sigmas=(14.6, 3.7, 0.6, 0.0))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(
    sampler: str,
    index: int,
    schedule: NoiseSchedule,
    state: SamplerState,
    denoised: Tensor,
    noise: Tensor | None = None,
) -> SamplerState:
    inputs = SamplerStep(index=index, schedule=schedule, state=state, denoised=denoised, noise=noise)
    return find_sampler(sampler).step(inputs)


def a_step(sampler: str, index: int, x: Tensor, denoised: Tensor, before: Tensor, noise: Tensor) -> Tensor:
    history = (before,) * find_sampler(sampler).history
    return step(sampler, index, SCHEDULE, SamplerState(x, history), denoised, noise).x


def test_the_registry_and_the_spec_have_the_same_samplers() -> None:
    assert tuple(registry.SAMPLERS) == SAMPLERS
    assert {name for name, sampler in registry.SAMPLERS.items() if sampler.stochastic} == {
        "euler-ancestral",
        "lcm",
    }


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_keeps_as_much_history_as_its_registration_says(name: str) -> None:
    sampler, state = find_sampler(name), SamplerState(draw(1, 4, 3, 3))
    for index in range(2):
        state = step(name, index, SCHEDULE, state, draw(1, 4, 3, 3, seed=1), draw(1, 4, 3, 3, seed=2))
        assert len(state.history) == sampler.history
    if sampler.stochastic:
        with pytest.raises(ValueError, match="needs noise"):
            step(name, 0, SCHEDULE, state, state.x)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_prediction_ends_at_the_true_image(sampler: str) -> None:
    truth = draw(1, 4, 6, 5)
    state = SamplerState(truth + draw(1, 4, 6, 5, seed=1) * SCHEDULE.sigmas[0])
    for index in range(3):
        state = step(sampler, index, SCHEDULE, state, truth, draw(1, 4, 6, 5, seed=index))
    assert (state.x - truth).abs().max() < 1e-5


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"lcm"}))
def test_a_perfect_prediction_keeps_the_noise_level(sampler: str) -> None:
    truth = torch.zeros(1, 4, 64, 64)
    state = SamplerState(draw(1, 4, 64, 64) * SCHEDULE.sigmas[0])
    for index in range(2):
        state = step(sampler, index, SCHEDULE, state, truth, draw(1, 4, 64, 64, seed=index + 1))
        assert float(state.x.std()) == pytest.approx(SCHEDULE.sigmas[index + 1], rel=0.03)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_to_denoised_removes_the_noise(kind: str) -> None:
    truth, noise, sigma = draw(1, 4, 8, 8), draw(1, 4, 8, 8, seed=1), 3.7
    level = NoiseLevel(sigma)
    scale = level.input_scale
    prediction = {
        "epsilon": noise,
        "v_prediction": noise * scale - truth * (sigma * scale),
        "sample": truth,
    }[kind]
    assert (to_denoised(prediction, truth + noise * sigma, level, kind) - truth).abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    sampler=st.sampled_from(SAMPLERS),
    index=st.integers(0, 2),
    box=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20)),
)
def test_a_part_of_a_tensor_steps_to_the_same_bits_as_the_whole(
    sampler: str, index: int, box: tuple[int, int, int, int]
) -> None:
    tensors = [draw(4, 40, 40, seed=seed) for seed in range(4)]
    top, left, height, width = box
    part = [tensor[:, top : top + height, left : left + width] for tensor in tensors]
    whole = a_step(sampler, index, *tensors)[:, top : top + height, left : left + width]
    assert torch.equal(a_step(sampler, index, *part), whole)
    assert torch.equal(a_step(sampler, index, *(piece.contiguous() for piece in part)), whole)


def test_a_schedule_may_have_several_steps_at_one_sigma() -> None:
    constant = NoiseSchedule(timesteps=(9.0,) * 20, sigmas=(2.0, 2.0, 2.0, *([1.0] * 17), 0.5))
    state = SamplerState(draw(1, 4, 3, 3))
    for index in range(20):
        state = step("dpmpp-2m", index, constant, state, draw(1, 4, 3, 3, seed=index))
    assert state.x.isfinite().all()


def test_unknown_names_are_bad_input() -> None:
    x = draw(1, 4, 2, 2)
    with pytest.raises(BadInput, match="sampler"):
        step("heun", 0, SCHEDULE, SamplerState(x), x)
    with pytest.raises(BadInput, match="prediction_type"):
        to_denoised(x, x, NoiseLevel(1.0), "velocity")
    with pytest.raises(ValueError, match="needs noise"):
        step("lcm", 0, SCHEDULE, SamplerState(x), x)
