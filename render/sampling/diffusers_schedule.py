"""The noise schedule of a model folder, read from diffusers' own scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import diffusers

from render.errors import BadInput, first_line
from render.sampling.registry import find_sampler
from render.sampling.schedule import NoiseSchedule
from render.sampling.schedule_readers import Reader, read_edm, read_flow, read_trigflow
from render.sampling.scheduler_config import NoiseKind, trained_noise, with_own_betas

_READERS: Mapping[NoiseKind, Reader] = {
    NoiseKind.FLOW_MATCH: read_flow,
    NoiseKind.FLOW_SIGMAS: read_flow,
    NoiseKind.EDM: read_edm,
    NoiseKind.TRIGFLOW: read_trigflow,
}
"""Of the kinds whose steps do not depend on the sampler's own scheduler class."""


def noise_schedule(
    config: Mapping[str, Any], sampler: str, steps: int, options: Mapping[str, Any] | None = None
) -> NoiseSchedule:
    """The steps that diffusers' scheduler of this sampler would take, from a model's scheduler config.

    `options` are what a family's pipeline gives `set_timesteps` beside the number of steps: `sigmas`, `mu`.
    Raises `BadInput` for an unknown sampler, one that cannot step the model's noise, or more steps than the
    model's own schedule has.
    """
    scheduler = stock_scheduler(config, sampler)
    count = {} if options and "sigmas" in options else {"num_inference_steps": steps}
    try:
        scheduler.set_timesteps(**count, **(options or {}))
        trained = int(scheduler.config.num_train_timesteps)
        read = _READERS.get(_kind(config), find_sampler(sampler).read)
        schedule = replace(read(scheduler, steps), trained_steps=trained)
    except (ValueError, IndexError) as exc:
        limit = getattr(
            scheduler.config, "original_inference_steps", scheduler.config.num_train_timesteps - 1
        )
        raise BadInput("steps", steps, f"do not fit the {sampler} sampler; use at most {limit}") from exc
    if not all(map(math.isfinite, (*schedule.timesteps, *schedule.sigmas))):
        raise BadInput("sampler", sampler, "has steps of infinite noise on this schedule; use another")
    return schedule


def stock_scheduler(config: Mapping[str, Any], sampler: str) -> Any:
    """diffusers' own scheduler object for one of our samplers.

    Raises `BadInput` for an unknown sampler, and for one that cannot step the model's noise.
    """
    entry, kind = find_sampler(sampler), _kind(config)
    name, settings = entry.scheduler, entry.settings
    if kind is NoiseKind.EDM:
        name = "EDMDPMSolverMultistepScheduler" if sampler == "dpmpp-2m" else "EDMEulerScheduler"
    elif kind is NoiseKind.FLOW_SIGMAS:
        name = "DPMSolverMultistepScheduler"
    elif kind is not NoiseKind.BETAS:
        name, settings = str(config["_class_name"]), {}
    try:
        return getattr(diffusers, name).from_config(with_own_betas(config), **settings)
    except (TypeError, ValueError, NotImplementedError, ImportError) as exc:
        reason = first_line(exc)
        raise BadInput("model", name, f"is a scheduler that cannot be made ({reason}); correct it") from exc


def _kind(config: Mapping[str, Any]) -> NoiseKind:
    if "_class_name" not in config:
        return NoiseKind.BETAS
    try:
        return trained_noise(config).kind
    except ValueError as exc:
        raise BadInput("model", config["_class_name"], f"is a scheduler {exc}") from exc
