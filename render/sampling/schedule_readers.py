"""Readers: the steps of a prepared diffusers scheduler as a `NoiseSchedule`, one reader per kind of
scheduler.

diffusers has two kinds of schedulers. Euler's step x = x0 + sigma * noise; the others step
x_vp = sqrt(abar) * x0 + sqrt(1 - abar) * noise. With sigma = sqrt((1 - abar) / abar) the second is the
first divided by sqrt(1 + sigma^2), so one frame serves both.

A reader takes a scheduler on which `set_timesteps(steps)` was called, and the number of steps.
"""

from __future__ import annotations

import math
from typing import Any

from render.sampling.schedule import NoiseSchedule

_SMALLEST_ABAR = 2.0**-24
"""A zero-terminal-SNR model has abar = 0, an infinite sigma; diffusers' Euler stops at the same value."""


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
    starts = [_sigma(scheduler.alphas_cumprod[t]) for t in timesteps]
    before = [t - stride for t in timesteps]
    landings = [
        _sigma(scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod) for t in before
    ]
    straight = landings[:-1] == starts[1:]
    return _variance_preserving(
        tuple(float(t) for t in timesteps),
        (*starts, landings[-1]),
        landings=None if straight else tuple(landings),
    )


def read_lcm(scheduler: Any, steps: int) -> NoiseSchedule:
    """Consistency models; the last step lands at sigma 0."""
    timesteps = [int(t) for t in scheduler.timesteps][:steps]
    sigmas = (*(_sigma(scheduler.alphas_cumprod[t]) for t in timesteps), 0.0)
    scaling = float(scheduler.config.timestep_scaling)
    return _variance_preserving(tuple(float(t) for t in timesteps), sigmas, timestep_scaling=scaling)


def _timesteps_and_sigmas(scheduler: Any, steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # With trailing spacing, diffusers' rounding gives one timestep too many (-1) for 61 steps, 103, 121
    # and others. The model was not trained on it and the stage has no step for it, so it is dropped.
    timesteps, sigmas = _floats(scheduler.timesteps), _floats(scheduler.sigmas)
    return timesteps[:steps], (*sigmas[:steps], sigmas[-1])


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


def _sigma(abar: Any) -> float:
    clipped = max(float(abar), _SMALLEST_ABAR)
    return math.sqrt((1.0 - clipped) / clipped)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
