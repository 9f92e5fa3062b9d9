"""Samplers: one step from sigma to a lower sigma, as small pure functions in the variance-exploding frame.

The symbols are those of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models" (arXiv 2206.00364): x = x0 + sigma * n, and `denoised` is D(x; sigma), the model's guess of x0.
Schedulers that think in the variance-preserving frame (x_vp = x / sqrt(1 + sigma^2)) are the same
steps seen from there.

Every rank repeats these operations on the areas that it shares with its neighbours, so they are plain
elementwise multiplications and additions with Python floats: no reductions and no fused operations,
whose last bits may depend on a tensor's shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from render.errors import BadInput
from render.sampling.schedule import NoiseSchedule

HISTORY: dict[str, int] = {"euler": 0, "euler-ancestral": 0, "ddim": 0, "dpmpp-2m": 1, "lcm": 0}
"""How many earlier denoised predictions each sampler looks back on."""
STOCHASTIC = frozenset({"euler-ancestral", "lcm"})
"""The samplers whose `step` takes fresh unit noise."""

_SIGMA_DATA = 0.5
_SHORT_SCHEDULE = 15
"""Below so many steps DPM-Solver++ ends with a first-order step, which is steadier (as diffusers does)."""


@dataclass(frozen=True)
class SamplerState:
    """What one step hands to the next: `x` [.., C, h, w], and earlier predictions, the newest first."""

    x: Tensor
    history: tuple[Tensor, ...] = ()


def input_scale(sigma: float) -> float:
    """What x is multiplied by before the network sees it."""
    return 1.0 / math.sqrt(1.0 + sigma * sigma)


def to_denoised(prediction: Tensor, x: Tensor, sigma: float, prediction_type: str) -> Tensor:
    """The network's prediction -> its guess of x0, same shape.

    `epsilon` is the noise (arXiv 2006.11239), `v_prediction` the velocity (arXiv 2202.00512, appendix D).
    """
    answer = prediction * denoised_slope(sigma, prediction_type)
    if prediction_type == "epsilon":
        return x + answer
    if prediction_type == "v_prediction":
        return x * (1.0 / (1.0 + sigma * sigma)) + answer
    return answer


def denoised_slope(sigma: float, prediction_type: str) -> float:
    """By how much x0 grows with the prediction."""
    if prediction_type == "epsilon":
        return -sigma
    if prediction_type == "v_prediction":
        return -sigma * input_scale(sigma)
    if prediction_type == "sample":
        return 1.0
    raise BadInput("prediction_type", prediction_type, "is unknown; use epsilon, v_prediction or sample")


def step(
    sampler: str,
    index: int,
    schedule: NoiseSchedule,
    state: SamplerState,
    denoised: Tensor,
    noise: Tensor | None = None,
) -> SamplerState:
    """Step `state` from `schedule.sigmas[index]` to the next sigma.

    `noise` is unit noise of x's shape, needed by the samplers in `STOCHASTIC` and ignored by the others.
    Raises `BadInput` for an unknown sampler.
    """
    x, sigma, sigma_next = state.x, schedule.sigmas[index], schedule.sigmas[index + 1]
    if sampler == "euler":
        return SamplerState(euler_step(x, denoised, sigma, sigma_next))
    if sampler == "ddim":
        landing = schedule.landings[index] if schedule.landings else sigma_next
        return SamplerState(ddim_step(x, denoised, sigma, landing, sigma_next))
    if sampler == "euler-ancestral":
        return SamplerState(euler_ancestral_step(x, denoised, sigma, sigma_next, noise))
    if sampler == "lcm":
        boundary = schedule.timesteps[index] * schedule.timestep_scaling
        return SamplerState(lcm_step(x, denoised, sigma, sigma_next, boundary, noise))
    if sampler == "dpmpp-2m":
        last = index == len(schedule.timesteps) - 1
        earlier = None
        heard = state.history if index not in (0, schedule.restart) else ()
        if heard and not (last and len(schedule.timesteps) < _SHORT_SCHEDULE):
            earlier = (heard[0], schedule.sigmas[index - 1])
        return SamplerState(dpmpp_2m_step(x, denoised, sigma, sigma_next, earlier), (denoised,))
    raise BadInput("sampler", sampler, f"is unknown; use one of {', '.join(HISTORY)}")


def euler_step(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Algorithm 2 of arXiv 2206.00364 without churn.

    x + (sigma' - sigma) * (x - D) / sigma, written as a blend so that nothing large is subtracted.
    """
    ratio = sigma_next / sigma
    return x * ratio + denoised * (1.0 - ratio)


def ddim_step(x: Tensor, denoised: Tensor, sigma: float, landing: float, sigma_next: float) -> Tensor:
    """Equation 12 of "Denoising Diffusion Implicit Models" (arXiv 2010.02502) with eta = 0.

    In this frame that is Euler's step. Where the stock scheduler lands beside the next timestep, it goes
    on as if it had not: the variance-preserving tensor stays and its sigma is read anew, hence `landing`.
    """
    landed = euler_step(x, denoised, sigma, landing)
    if landing == sigma_next:
        return landed
    return landed * (input_scale(landing) / input_scale(sigma_next))


def euler_ancestral_step(
    x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, noise: Tensor | None
) -> Tensor:
    """Euler down to sigma_down, then noise up to sigma': the ancestral step of arXiv 2006.11239 with a
    learned mean, in the form of k-diffusion."""
    variance = sigma_next**2 * max(0.0, sigma**2 - sigma_next**2) / sigma**2
    sigma_up = math.sqrt(variance)
    sigma_down = math.sqrt(max(0.0, sigma_next**2 - variance))
    down = euler_step(x, denoised, sigma, sigma_down)
    return down if sigma_up == 0.0 else down + _needed(noise) * sigma_up


def dpmpp_2m_step(
    x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, earlier: tuple[Tensor, float] | None
) -> Tensor:
    """Algorithm 2 of "DPM-Solver++" (arXiv 2211.01095), multistep of second order, midpoint.

    `earlier` is the previous denoised prediction and its sigma; without it, or when the step ends at
    sigma 0 where the step in lambda = -log(sigma) is infinite, the step is of first order.
    """
    if earlier is None or sigma_next == 0.0:
        return euler_step(x, denoised, sigma, sigma_next)
    denoised_before, sigma_before = earlier
    h, h_before = math.log(sigma / sigma_next), math.log(sigma_before / sigma)
    if h_before <= 0.0:  # two steps at one sigma: nothing to extrapolate from
        return euler_step(x, denoised, sigma, sigma_next)
    weight = h / (2.0 * h_before)
    extrapolated = denoised * (1.0 + weight) - denoised_before * weight
    return euler_step(x, extrapolated, sigma, sigma_next)


def lcm_step(
    x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, boundary: float, noise: Tensor | None
) -> Tensor:
    """Multistep consistency sampling, algorithm 1 of "Latent Consistency Models" (arXiv 2310.04378).

    `boundary` is the scaled timestep of the boundary condition c_skip * x_vp + c_out * D.
    """
    spread = boundary**2 + _SIGMA_DATA**2
    c_skip, c_out = _SIGMA_DATA**2 / spread, boundary / math.sqrt(spread)
    consistent = x * (c_skip * input_scale(sigma)) + denoised * c_out
    return consistent if sigma_next == 0.0 else consistent + _needed(noise) * sigma_next


def _needed(noise: Tensor | None) -> Tensor:
    if noise is None:
        raise ValueError("this sampler needs noise; see STOCHASTIC")
    return noise
