"""The noise schedule of a model folder, read from diffusers' own scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import diffusers

from render.errors import BadInput
from render.sampling.registry import find_sampler
from render.sampling.schedule import NoiseSchedule


def noise_schedule(config: Mapping[str, Any], sampler: str, steps: int) -> NoiseSchedule:
    """The steps that diffusers' scheduler of this sampler would take, from a model's scheduler config.

    Raises `BadInput` for an unknown sampler, or for more steps than the model's own schedule has.
    """
    scheduler = stock_scheduler(config, sampler)
    try:
        scheduler.set_timesteps(steps)
        trained = int(scheduler.config.num_train_timesteps)
        return replace(find_sampler(sampler).read(scheduler, steps), trained_steps=trained)
    except (ValueError, IndexError) as exc:
        limit = getattr(
            scheduler.config, "original_inference_steps", scheduler.config.num_train_timesteps - 1
        )
        raise BadInput("steps", steps, f"do not fit the {sampler} sampler; use at most {limit}") from exc


def stock_scheduler(config: Mapping[str, Any], sampler: str) -> Any:
    """diffusers' own scheduler object for one of our samplers. Raises `BadInput` for an unknown sampler."""
    entry = find_sampler(sampler)
    return getattr(diffusers, entry.scheduler).from_config(config, **entry.settings)
