"""Samplers: one step from sigma to a lower sigma, as small pure functions in the variance-exploding frame.

The symbols are those of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models" (arXiv 2206.00364): x = x0 + sigma * n, and `denoised` is D(x; sigma), the model's estimate of x0.
Schedulers in the variance-preserving frame (x_vp = x / sqrt(1 + sigma^2)) take the same steps in other
coordinates.

Every rank repeats these operations on the areas that it shares with its neighbours. So they are plain
elementwise multiplications and additions with Python floats. Reductions and fused operations are not allowed
here: their last bits may depend on a tensor's shape.

The table of samplers is `render.sampling.registry`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from render.errors import BadInput
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
    """The inputs of step `index`, which goes from `schedule.sigmas[index]` to the next sigma."""

    index: int
    schedule: NoiseSchedule
    state: SamplerState
    denoised: Tensor
    """D(x; sigma), of x's shape."""
    noise: Tensor | None = None
    """Unit noise of x's shape; stochastic samplers need it, the others ignore it."""

    @property
    def sigma(self) -> float:
        return self.schedule.sigmas[self.index]

    @property
    def sigma_next(self) -> float:
        return self.schedule.sigmas[self.index + 1]


def input_scale(sigma: float) -> float:
    """The factor on x at the input of the network."""
    return 1.0 / math.sqrt(1.0 + sigma * sigma)


def to_denoised(prediction: Tensor, x: Tensor, sigma: float, prediction_type: str) -> Tensor:
    """The network's prediction -> its estimate of x0, same shape.

    `epsilon` is the noise (arXiv 2006.11239), `v_prediction` the velocity (arXiv 2202.00512, appendix D).
    Raises `BadInput` for an unknown prediction type.
    """
    term = prediction * denoised_slope(sigma, prediction_type)
    if prediction_type == "epsilon":
        return x + term
    if prediction_type == "v_prediction":
        return x * (1.0 / (1.0 + sigma * sigma)) + term
    return term


def denoised_slope(sigma: float, prediction_type: str) -> float:
    """The derivative of the estimate of x0 with respect to the prediction."""
    if prediction_type == "epsilon":
        return -sigma
    if prediction_type == "v_prediction":
        return -sigma * input_scale(sigma)
    if prediction_type == "sample":
        return 1.0
    raise BadInput("prediction_type", prediction_type, "is unknown; use epsilon, v_prediction or sample")


def euler(step: SamplerStep) -> SamplerState:
    """See `euler_step`."""
    return SamplerState(euler_step(step.state.x, step.denoised, step.sigma, step.sigma_next))


def euler_ancestral(step: SamplerStep) -> SamplerState:
    """See `euler_ancestral_step`."""
    x = euler_ancestral_step(step.state.x, step.denoised, step.sigma, step.sigma_next, step.noise)
    return SamplerState(x)


def ddim(step: SamplerStep) -> SamplerState:
    """See `ddim_step`."""
    landings = step.schedule.landings
    landing = landings[step.index] if landings else step.sigma_next
    return SamplerState(ddim_step(step.state.x, step.denoised, step.sigma, landing, step.sigma_next))


def dpmpp_2m(step: SamplerStep) -> SamplerState:
    """See `dpmpp_2m_step`. The first step, the first step of another network and the last step of a short
    schedule are of first order."""
    schedule, index = step.schedule, step.index
    steps = len(schedule.timesteps)
    history = step.state.history if index not in (0, schedule.restart) else ()
    earlier = None
    if history and not (index == steps - 1 and steps < _SHORT_SCHEDULE):
        earlier = (history[0], schedule.sigmas[index - 1])
    x = dpmpp_2m_step(step.state.x, step.denoised, step.sigma, step.sigma_next, earlier)
    return SamplerState(x, (step.denoised,))


def lcm(step: SamplerStep) -> SamplerState:
    """See `lcm_step`."""
    boundary = step.schedule.timesteps[step.index] * step.schedule.timestep_scaling
    x = lcm_step(step.state.x, step.denoised, step.sigma, step.sigma_next, boundary, step.noise)
    return SamplerState(x)


def euler_step(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Algorithm 2 of arXiv 2206.00364 without churn.

    x + (sigma' - sigma) * (x - D) / sigma, written as a weighted sum so that no large numbers are subtracted.
    """
    ratio = sigma_next / sigma
    return x * ratio + denoised * (1.0 - ratio)


def ddim_step(x: Tensor, denoised: Tensor, sigma: float, landing: float, sigma_next: float) -> Tensor:
    """Equation 12 of "Denoising Diffusion Implicit Models" (arXiv 2010.02502) with eta = 0.

    In this frame that is Euler's step. Where the stock scheduler does not land on the next timestep, it
    continues as if it had: the variance-preserving tensor stays and its sigma is read anew, hence `landing`.
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
    return down if sigma_up == 0.0 else down + _required(noise) * sigma_up


def dpmpp_2m_step(
    x: Tensor, denoised: Tensor, sigma: float, sigma_next: float, earlier: tuple[Tensor, float] | None
) -> Tensor:
    """Algorithm 2 of "DPM-Solver++" (arXiv 2211.01095), multistep of second order, midpoint.

    `earlier` is the previous denoised prediction and its sigma. Without it, or when the step ends at
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
    return consistent if sigma_next == 0.0 else consistent + _required(noise) * sigma_next


def _required(noise: Tensor | None) -> Tensor:
    if noise is None:
        raise ValueError("this sampler needs noise; its registration says `stochastic`")
    return noise
