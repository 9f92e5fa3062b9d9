"""Readers: the steps of a prepared diffusers scheduler as a `NoiseSchedule`, one reader per kind of
scheduler.

Schedulers of models that were trained on betas are of two kinds. Euler's step x = x0 + sigma * noise; the
others step x_vp = sqrt(abar) * x0 + sqrt(1 - abar) * noise. With sigma = sqrt((1 - abar) / abar) the second
is the first divided by sqrt(1 + sigma^2), so the exploding process serves both, except where abar is nearly
0.

A reader takes a scheduler on which `set_timesteps` was called, and the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from render.sampling.process import NoiseProcess
from render.sampling.schedule import NoiseSchedule

Reader = Callable[[Any, int], NoiseSchedule]

_SMALLEST_ABAR = 2.0**-24
"""Where diffusers' Euler and DPM-Solver++ stop for a model of zero terminal signal-to-noise ratio. Below it
the exploding process would need sigmas above 4096."""


def read_euler(scheduler: Any, steps: int) -> NoiseSchedule:
    """Schedulers that step in the variance-exploding frame."""
    timesteps, sigmas = _timesteps_and_sigmas(scheduler, steps)
    return NoiseSchedule(timesteps=timesteps, sigmas=sigmas, initial_scale=float(scheduler.init_noise_sigma))


def read_dpmpp(scheduler: Any, steps: int) -> NoiseSchedule:
    """Schedulers that list sigmas and step in the variance-preserving frame."""
    return _variance_preserving(*_timesteps_and_sigmas(scheduler, steps))


def read_ddim(scheduler: Any, steps: int) -> NoiseSchedule:
    """DDIM, whose steps may land beside the next timestep (see `NoiseSchedule.landings`)."""
    timesteps = [int(t) for t in scheduler.timesteps][:steps]
    stride = scheduler.config.num_train_timesteps // steps
    starts = [float(scheduler.alphas_cumprod[t]) for t in timesteps]
    before = [t - stride for t in timesteps]
    landings = [
        float(scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod) for t in before
    ]
    return _from_abars(timesteps, starts, landings)


def read_lcm(scheduler: Any, steps: int) -> NoiseSchedule:
    """Consistency models; the last step lands at sigma 0."""
    timesteps = [int(t) for t in scheduler.timesteps][:steps]
    starts = [float(scheduler.alphas_cumprod[t]) for t in timesteps]
    scaling = float(scheduler.config.timestep_scaling)
    return _from_abars(timesteps, starts, [*starts[1:], 1.0], timestep_scaling=scaling)


def read_edm(scheduler: Any, steps: int) -> NoiseSchedule:
    """EDM (arXiv 2206.00364): sigmas as they are, and a network made for data of another deviation than 1."""
    timesteps, sigmas = _timesteps_and_sigmas(scheduler, steps)
    return NoiseSchedule(
        timesteps=timesteps,
        sigmas=sigmas,
        data_deviation=float(scheduler.config.sigma_data),
        initial_scale=float(scheduler.init_noise_sigma),
    )


def read_flow(scheduler: Any, steps: int) -> NoiseSchedule:
    """Flow matching: the scheduler lists sigmas between 1 and 0."""
    timesteps, sigmas = _timesteps_and_sigmas(scheduler, steps)
    return NoiseSchedule(timesteps=timesteps, sigmas=sigmas, process=NoiseProcess.FLOW, timestep_scaling=None)


def read_trigflow(scheduler: Any, steps: int) -> NoiseSchedule:
    """TrigFlow (arXiv 2410.11081), whose timesteps are angles: alpha = cos(t), sigma = sin(t). The canvas has
    unit deviation; a network that wants `sigma_data` scales its input and output itself."""
    angles = _floats(scheduler.timesteps)
    return NoiseSchedule(
        timesteps=angles[:steps],
        sigmas=tuple(math.sin(angle) for angle in angles),
        process=NoiseProcess.PRESERVING,
        timestep_scaling=None,
    )


def _timesteps_and_sigmas(scheduler: Any, steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # With trailing spacing, diffusers' rounding gives one timestep too many (-1) for 61 steps, 103, 121
    # and others. The model was not trained on it and the stage has no step for it, so it is dropped.
    timesteps, sigmas = _floats(scheduler.timesteps), _floats(scheduler.sigmas)
    return timesteps[:steps], (*sigmas[:steps], sigmas[-1])


def _from_abars(
    timesteps: list[int], starts: list[float], landings: list[float], **more: Any
) -> NoiseSchedule:
    """The schedule over alphas_cumprod of a scheduler that steps in the variance-preserving frame."""
    steps = tuple(float(t) for t in timesteps)
    finite = min(starts) >= _SMALLEST_ABAR
    sigma = _sigma if finite else _preserving_sigma
    levels = tuple(sigma(abar) for abar in starts)
    landed = tuple(sigma(abar) for abar in landings)
    sigmas = (*levels, landed[-1])
    if landed[:-1] != levels[1:]:
        more["landings"] = landed
    if finite:
        return _variance_preserving(steps, sigmas, **more)
    return NoiseSchedule(timesteps=steps, sigmas=sigmas, process=NoiseProcess.PRESERVING, **more)


def _variance_preserving(
    timesteps: tuple[float, ...], sigmas: tuple[float, ...], **more: Any
) -> NoiseSchedule:
    """The schedule of a variance-preserving scheduler: it starts from unit noise and ends at x_vp."""
    first, last = sigmas[0], sigmas[-1]
    return NoiseSchedule(
        timesteps=timesteps,
        sigmas=sigmas,
        initial_scale=math.sqrt(1.0 + first * first),
        final_scale=1.0 / math.sqrt(1.0 + last * last),
        **more,
    )


def _sigma(abar: float) -> float:
    return math.sqrt((1.0 - abar) / abar)


def _preserving_sigma(abar: float) -> float:
    return math.sqrt(1.0 - abar)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
