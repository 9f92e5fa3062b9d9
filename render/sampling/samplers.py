"""Samplers: one step from a noise level to a lower one, as small pure functions over (alpha, sigma).

The symbols are those of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models" (arXiv 2206.00364), with a factor on x0: x = alpha * x0 + sigma * n, and `denoised` is D(x), the
model's estimate of x0. Which alpha goes with a sigma: `render.sampling.process`.

Every rank repeats these operations on the areas that it shares with its neighbours. So they are plain
elementwise multiplications and additions with Python floats. Reductions and fused operations are not allowed
here: their last bits may depend on a tensor's shape.

The table of samplers is `render.sampling.registry`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from render.sampling.process import NoiseLevel
from render.sampling.schedule import NoiseSchedule

_SIGMA_DATA = 0.5
_SHORT_SCHEDULE = 15
"""With fewer steps than this, DPM-Solver++ ends with a first-order step, which is more stable (as in
diffusers)."""


@dataclass(frozen=True)
class SamplerState:
    """What one step passes to the next: `x` [.., C, h, w], and earlier denoised predictions, newest first."""

    x: Tensor
    history: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SamplerStep:
    """The inputs of step `index`, which goes from `schedule.level(index)` to the next level."""

    index: int
    schedule: NoiseSchedule
    state: SamplerState
    denoised: Tensor
    """D(x), the estimate of x0, of x's shape."""
    noise: Tensor | None = None
    """Unit noise of x's shape; stochastic samplers need it, the others ignore it."""

    @property
    def level(self) -> NoiseLevel:
        """The level of x."""
        return self.schedule.level(self.index)

    @property
    def next_level(self) -> NoiseLevel:
        """The level that the step leads to."""
        return self.schedule.level(self.index + 1)


def to_denoised(prediction: Tensor, x: Tensor, level: NoiseLevel, prediction_type: str) -> Tensor:
    """The network's prediction -> its estimate of x0, same shape; see `NoiseLevel.denoised_terms`."""
    of_x, of_prediction = level.denoised_terms(prediction_type)
    term = prediction if of_prediction == 1.0 else prediction * of_prediction
    if of_x == 0.0:
        return term
    return (x if of_x == 1.0 else x * of_x) + term


def denoised_slope(level: NoiseLevel, prediction_type: str) -> float:
    """The derivative of the estimate of x0 with respect to the prediction."""
    return level.denoised_terms(prediction_type)[1]


def euler(step: SamplerStep) -> SamplerState:
    """See `euler_step`."""
    return SamplerState(euler_step(step.state.x, step.denoised, step.level, step.next_level))


def euler_ancestral(step: SamplerStep) -> SamplerState:
    """See `euler_ancestral_step`."""
    x = euler_ancestral_step(step.state.x, step.denoised, step.level, step.next_level, step.noise)
    return SamplerState(x)


def ddim(step: SamplerStep) -> SamplerState:
    """See `ddim_step`."""
    landings, next_level = step.schedule.landings, step.next_level
    landing = next_level.at(landings[step.index]) if landings else next_level
    return SamplerState(ddim_step(step.state.x, step.denoised, step.level, landing, next_level))


def dpmpp_2m(step: SamplerStep) -> SamplerState:
    """See `dpmpp_2m_step`. The first step, the first step of another network and the last step of a short
    schedule are of first order."""
    schedule, index = step.schedule, step.index
    steps = len(schedule.timesteps)
    history = step.state.history if index not in (0, schedule.restart) else ()
    earlier = None
    if history and not (index == steps - 1 and steps < _SHORT_SCHEDULE):
        earlier = (history[0], schedule.level(index - 1))
    x = dpmpp_2m_step(step.state.x, step.denoised, step.level, step.next_level, earlier)
    return SamplerState(x, (step.denoised,))


def lcm(step: SamplerStep) -> SamplerState:
    """See `lcm_step`."""
    scaling = step.schedule.timestep_scaling
    boundary = None if scaling is None else step.schedule.timesteps[step.index] * scaling
    x = lcm_step(step.state.x, step.denoised, step.level, step.next_level, boundary, step.noise)
    return SamplerState(x)


def euler_step(x: Tensor, denoised: Tensor, level: NoiseLevel, next_level: NoiseLevel) -> Tensor:
    """Algorithm 2 of arXiv 2206.00364 without churn, for any alpha.

    alpha' * D + sigma' * (x - alpha * D) / sigma, written as a weighted sum so that no large numbers are
    subtracted. With alpha = 1 that is Karras' step, with alpha = 1 - sigma that of flow matching, with
    alpha^2 = 1 - sigma^2 equation 12 of DDIM.
    """
    ratio = next_level.sigma / level.sigma
    return x * ratio + denoised * (next_level.alpha - level.alpha * ratio)


def ddim_step(
    x: Tensor, denoised: Tensor, level: NoiseLevel, landing: NoiseLevel, next_level: NoiseLevel
) -> Tensor:
    """Equation 12 of "Denoising Diffusion Implicit Models" (arXiv 2010.02502) with eta = 0.

    That is Euler's step. Where the stock scheduler does not land on the next timestep, it continues as if it
    had: the network's input stays and its sigma is read anew, hence `landing`.
    """
    landed = euler_step(x, denoised, level, landing)
    if landing == next_level:
        return landed
    return landed * (landing.input_scale / next_level.input_scale)


def euler_ancestral_step(
    x: Tensor, denoised: Tensor, level: NoiseLevel, next_level: NoiseLevel, noise: Tensor | None
) -> Tensor:
    """Euler down to sigma_down = sigma'^2 / sigma, then noise up to sigma': the ancestral step of arXiv
    2006.11239 with a learned mean, in the form of k-diffusion; for other alphas in that of ComfyUI."""
    sigma, sigma_next = level.sigma, next_level.sigma
    variance = sigma_next**2 * max(0.0, sigma**2 - sigma_next**2) / sigma**2
    sigma_down = math.sqrt(max(0.0, sigma_next**2 - variance))
    down_level = level.at(sigma_down)
    down = euler_step(x, denoised, level, down_level)
    ratio = next_level.alpha / down_level.alpha
    if ratio == 1.0:
        sigma_up = math.sqrt(variance)
    else:
        down = down * ratio
        sigma_up = math.sqrt(max(0.0, sigma_next**2 - (sigma_down * ratio) ** 2))
    return down if sigma_up == 0.0 else down + _required(noise) * sigma_up


def dpmpp_2m_step(
    x: Tensor,
    denoised: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    earlier: tuple[Tensor, NoiseLevel] | None,
) -> Tensor:
    """Algorithm 2 of "DPM-Solver++" (arXiv 2211.01095), multistep of second order, midpoint.

    `earlier` is the previous denoised prediction and its level. The step is of first order without it, or
    where a step in lambda = log(alpha / sigma) is infinite: to sigma 0, and from alpha 0.
    """
    if earlier is None or next_level.sigma == 0.0 or level.alpha == 0.0:
        return euler_step(x, denoised, level, next_level)
    denoised_before, level_before = earlier
    h, h_before = _log_step(level, next_level), _log_step(level_before, level)
    # Two steps at one sigma, or the one before from alpha 0: nothing to extrapolate from.
    if h_before <= 0.0 or math.isinf(h_before):
        return euler_step(x, denoised, level, next_level)
    weight = h / (2.0 * h_before)
    extrapolated = denoised * (1.0 + weight) - denoised_before * weight
    return euler_step(x, extrapolated, level, next_level)


def lcm_step(
    x: Tensor,
    denoised: Tensor,
    level: NoiseLevel,
    next_level: NoiseLevel,
    boundary: float | None,
    noise: Tensor | None,
) -> Tensor:
    """Multistep consistency sampling, algorithm 1 of "Latent Consistency Models" (arXiv 2310.04378).

    `boundary` is the scaled timestep of the boundary condition c_skip * x + c_out * D, where x is the
    network's input; without it the estimate is D, as for consistency models of flow matching and TrigFlow.
    """
    consistent = denoised
    if boundary is not None:
        spread = boundary**2 + _SIGMA_DATA**2
        c_skip, c_out = _SIGMA_DATA**2 / spread, boundary / math.sqrt(spread)
        consistent = x * (c_skip * level.input_scale) + denoised * c_out
    if next_level.sigma == 0.0:
        return consistent
    kept = consistent if next_level.alpha == 1.0 else consistent * next_level.alpha
    return kept + _required(noise) * next_level.sigma


def _log_step(level: NoiseLevel, next_level: NoiseLevel) -> float:
    """The step in lambda = log(alpha / sigma)."""
    if level.alpha == 0.0:
        return math.inf
    return math.log((next_level.alpha * level.sigma) / (next_level.sigma * level.alpha))


def _required(noise: Tensor | None) -> Tensor:
    if noise is None:
        raise ValueError("this sampler needs noise; its registration says `stochastic`")
    return noise
