"""The steps of a sampler, read off the stock diffusers scheduler and put into the engine's one frame.

diffusers has two kinds of schedulers: Euler's step x = x0 + sigma * noise, the others
x_vp = sqrt(abar) * x0 + sqrt(1 - abar) * noise. With sigma = sqrt((1 - abar) / abar) the second is the
first divided by sqrt(1 + sigma^2), so one frame serves both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import diffusers

from render.errors import BadInput
from render.sampling.schedule import NoiseSchedule

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    # Clipping x0 to [-1, 1] is for pixels; DDIM's default would clip latents of a config that is silent.
    "ddim": ("DDIMScheduler", {"clip_sample": False, "thresholding": False}),
    "dpmpp-2m": (
        "DPMSolverMultistepScheduler",
        {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
            "thresholding": False,
        },
    ),
    "lcm": ("LCMScheduler", {"clip_sample": False, "thresholding": False}),
}
_SMALLEST_ABAR = 2.0**-24
"""A zero-terminal-SNR model has abar = 0, an infinite sigma; diffusers' Euler stops at the same value."""


def noise_schedule(config: Mapping[str, Any], sampler: str, steps: int) -> NoiseSchedule:
    """The steps that diffusers' scheduler of this sampler would take, from a model's scheduler config.

    Raises `BadInput` for an unknown sampler, or for more steps than the model's own schedule has.
    """
    scheduler = stock_scheduler(config, sampler)
    try:
        scheduler.set_timesteps(steps)
        trained = int(scheduler.config.num_train_timesteps)
        return replace(_READERS[sampler](scheduler, steps), trained_steps=trained)
    except (ValueError, IndexError) as exc:
        limit = getattr(
            scheduler.config, "original_inference_steps", scheduler.config.num_train_timesteps - 1
        )
        raise BadInput("steps", steps, f"do not fit the {sampler} sampler; use at most {limit}") from exc


def stock_scheduler(config: Mapping[str, Any], sampler: str) -> Any:
    """diffusers' own scheduler object for one of our samplers."""
    if sampler not in _SCHEDULERS:
        raise BadInput("sampler", sampler, f"is unknown; use one of {', '.join(_SCHEDULERS)}")
    name, settings = _SCHEDULERS[sampler]
    return getattr(diffusers, name).from_config(config, **settings)


def _read_euler(scheduler: Any, steps: int) -> NoiseSchedule:
    timesteps, sigmas = _timesteps_and_sigmas(scheduler, steps)
    return NoiseSchedule(timesteps=timesteps, sigmas=sigmas, initial_scale=float(scheduler.init_noise_sigma))


def _read_dpmpp(scheduler: Any, steps: int) -> NoiseSchedule:
    return _preserving(*_timesteps_and_sigmas(scheduler, steps))


def _timesteps_and_sigmas(scheduler: Any, steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # With trailing spacing, diffusers' rounding gives one timestep too many (-1) for 61 steps, 103, 121
    # and others; what the model was never trained on, and what the stage has no step for, is left out.
    timesteps, sigmas = _floats(scheduler.timesteps), _floats(scheduler.sigmas)
    return timesteps[:steps], (*sigmas[:steps], sigmas[-1])


def _read_ddim(scheduler: Any, steps: int) -> NoiseSchedule:
    timesteps = [int(t) for t in scheduler.timesteps][:steps]
    stride = scheduler.config.num_train_timesteps // steps
    starts = [_sigma(scheduler.alphas_cumprod[t]) for t in timesteps]
    before = [t - stride for t in timesteps]
    landings = [
        _sigma(scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod) for t in before
    ]
    straight = landings[:-1] == starts[1:]
    return _preserving(
        tuple(float(t) for t in timesteps),
        (*starts, landings[-1]),
        landings=None if straight else tuple(landings),
    )


def _read_lcm(scheduler: Any, steps: int) -> NoiseSchedule:
    timesteps = [int(t) for t in scheduler.timesteps][:steps]
    sigmas = (*(_sigma(scheduler.alphas_cumprod[t]) for t in timesteps), 0.0)
    scaling = float(scheduler.config.timestep_scaling)
    return _preserving(tuple(float(t) for t in timesteps), sigmas, timestep_scaling=scaling)


def _preserving(timesteps: tuple[float, ...], sigmas: tuple[float, ...], **more: Any) -> NoiseSchedule:
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
    kept = max(float(abar), _SMALLEST_ABAR)
    return math.sqrt((1.0 - kept) / kept)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


_READERS = {
    "euler": _read_euler,
    "euler-ancestral": _read_euler,
    "ddim": _read_ddim,
    "dpmpp-2m": _read_dpmpp,
    "lcm": _read_lcm,
}
