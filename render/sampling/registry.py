"""The table of samplers. A new sampler is one entry here and its name in `render.spec.SAMPLERS`.

`render.spec` lists the names again because it must not import torch; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from render.errors import BadInput
from render.sampling import samplers
from render.sampling.samplers import SamplerState, SamplerStep
from render.sampling.schedule_readers import Reader, read_ddim, read_dpmpp, read_euler, read_lcm


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """All that is known about one sampler."""

    name: str
    step: Callable[[SamplerStep], SamplerState]
    scheduler: str
    """The diffusers scheduler class that its schedule is read from, for models trained on betas; the folder's
    own class serves the others (`render.sampling.diffusers_schedule`)."""
    read: Reader
    """Reads the prepared scheduler; see `render.sampling.schedule_readers`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Configuration of the scheduler that takes precedence over the model folder's own."""
    history: int = 0
    """Number of earlier denoised predictions that a step uses."""
    stochastic: bool = False
    """Whether a step needs fresh unit noise."""


_ALL = (
    Sampler(
        name="euler",
        step=samplers.euler,
        scheduler="EulerDiscreteScheduler",
        read=read_euler,
    ),
    Sampler(
        name="euler-ancestral",
        step=samplers.euler_ancestral,
        scheduler="EulerAncestralDiscreteScheduler",
        read=read_euler,
        stochastic=True,
    ),
    Sampler(
        name="ddim",
        step=samplers.ddim,
        scheduler="DDIMScheduler",
        # Clipping x0 to [-1, 1] is for pixels. DDIM clips by default, and a config may not mention it.
        settings={"clip_sample": False, "thresholding": False},
        read=read_ddim,
    ),
    Sampler(
        name="dpmpp-2m",
        step=samplers.dpmpp_2m,
        scheduler="DPMSolverMultistepScheduler",
        settings={
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
            "thresholding": False,
        },
        read=read_dpmpp,
        history=1,
    ),
    Sampler(
        name="lcm",
        step=samplers.lcm,
        scheduler="LCMScheduler",
        settings={"clip_sample": False, "thresholding": False},
        read=read_lcm,
        stochastic=True,
    ),
)
SAMPLERS: Mapping[str, Sampler] = {sampler.name: sampler for sampler in _ALL}


def find_sampler(name: str) -> Sampler:
    """The sampler of this name. Raises `BadInput` for an unknown one."""
    if name not in SAMPLERS:
        raise BadInput("sampler", name, f"is unknown; use one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
