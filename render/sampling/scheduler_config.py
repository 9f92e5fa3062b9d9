"""Which noise a model was trained with, and what can sample it, from its scheduler's configuration alone.

Without torch, so that a plan refuses what the engine cannot express. The steps themselves are read from
diffusers' own scheduler object (`render.sampling.diffusers_schedule`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from render.sampling.process import EPSILON, FLOW, SAMPLE, V_PREDICTION
from render.spec import SAMPLERS


class NoiseKind(StrEnum):
    """How a folder's scheduler describes the training noise."""

    BETAS = "betas"
    FLOW_MATCH = "flow match"
    FLOW_SIGMAS = "flow sigmas"
    """Flow matching in a solver that was written for betas (`use_flow_sigmas`)."""
    EDM = "edm"
    TRIGFLOW = "trigflow"


@dataclass(frozen=True, kw_only=True)
class TrainedNoise:
    """What a scheduler's configuration says of the model."""

    kind: NoiseKind
    prediction_type: str
    """One of `render.sampling.process.PREDICTION_TYPES`."""
    samplers: tuple[str, ...] = SAMPLERS
    """Those that can step it."""
    most_steps: int = 1000
    most_lcm_steps: int = 50


_BETA_CLASSES = frozenset(
    f"{name}Scheduler"
    for name in (
        *(
            "DDIM",
            "DDIMParallel",
            "DDPM",
            "DDPMParallel",
            "DEISMultistep",
            "DPMSolverMultistep",
            "DPMSolverSDE",
        ),
        *(
            "DPMSolverSinglestep",
            "EulerAncestralDiscrete",
            "EulerDiscrete",
            "HeunDiscrete",
            "KDPM2AncestralDiscrete",
        ),
        *("KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD", "UniPCMultistep"),
    )
)
_FLOW_CLASSES = frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"})
_EDM_CLASSES = frozenset({"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"})
_SCM = "SCMScheduler"
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_SIGMA_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_FLOW_SAMPLERS = tuple(name for name in SAMPLERS if name != "ddim")


def trained_noise(config: Mapping[str, Any]) -> TrainedNoise:
    """The noise of a model, from its `scheduler_config.json`.

    Raises `ValueError` with a problem to follow "has a scheduler " where the engine cannot express it.
    """
    name = config.get("_class_name")
    _check_sigma_flags(config)
    if name in _FLOW_CLASSES:
        return _flow_match(config)
    if name in _EDM_CLASSES:
        return _edm(config)
    if name == _SCM:
        return _trigflow(config)
    if name not in _BETA_CLASSES:
        raise ValueError(
            f"{name!r}, which has no reader here; use a folder with {_listed(_FLOW_CLASSES)} or Euler"
        )
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return _flow_sigmas(config)
    return _betas(config)


def _betas(config: Mapping[str, Any]) -> TrainedNoise:
    _one_of(config, "beta_schedule", _BETA_SCHEDULES, "linear")
    _one_of(config, "timestep_spacing", ("linspace", "leading", "trailing"), "linspace")
    prediction = _one_of(config, "prediction_type", (EPSILON, V_PREDICTION, SAMPLE), EPSILON)
    steps, betas = _trained_steps(config), config.get("trained_betas")
    if betas is not None and (not isinstance(betas, list) or len(betas) != steps):
        raise ValueError(f"with {steps} num_train_timesteps and trained_betas of another number; correct one")
    if config.get("snr_shift_scale", 1.0) != 1.0:
        raise ValueError("with snr_shift_scale, which has no reader here; use a text-to-image model")
    lcm_steps = config.get("original_inference_steps", 50)
    return TrainedNoise(
        kind=NoiseKind.BETAS,
        prediction_type=prediction,
        samplers=tuple(name for name in SAMPLERS if name not in _unfit_samplers(config, steps, lcm_steps)),
        most_steps=steps,
        most_lcm_steps=lcm_steps,
    )


def _unfit_samplers(config: Mapping[str, Any], steps: int, lcm_steps: int) -> set[str]:
    """The samplers that a model trained on betas excludes."""
    unfit = set()
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type", EPSILON) == EPSILON:
        # The noise says nothing of x0 where alpha is 0; Euler and DPM-Solver++ stop short of it.
        unfit.add("lcm")
        if config.get("timestep_spacing") != "leading":
            unfit.add("ddim")
    if lcm_steps > steps:
        unfit.add("lcm")
    if config.get("beta_schedule") == "squaredcos_cap_v2" and any(config.get(flag) for flag in _SIGMA_FLAGS):
        # Several of its steps fall on one timestep, and diffusers' own scheduler breaks off.
        unfit.add("dpmpp-2m")
    if config.get("interpolation_type", "linear") != "linear":
        # diffusers' Euler makes one sigma too many then, and its last step leaves noise in the image.
        unfit.add("euler")
    return unfit


def _flow_match(config: Mapping[str, Any]) -> TrainedNoise:
    if config.get("invert_sigmas"):
        raise ValueError("with invert_sigmas, which only video models use; use a text-to-image model")
    _one_of(config, "time_shift_type", ("exponential", "linear"), "exponential")
    samplers = ("lcm",) if config.get("stochastic_sampling") else _FLOW_SAMPLERS
    return _flow(NoiseKind.FLOW_MATCH, config, samplers)


def _flow_sigmas(config: Mapping[str, Any]) -> TrainedNoise:
    if not config.get("use_flow_sigmas"):
        raise ValueError("with prediction_type 'flow_prediction' without use_flow_sigmas; set both or none")
    _one_of(config, "prediction_type", ("flow_prediction",), EPSILON)
    return _flow(NoiseKind.FLOW_SIGMAS, config, _FLOW_SAMPLERS)


def _flow(kind: NoiseKind, config: Mapping[str, Any], samplers: tuple[str, ...]) -> TrainedNoise:
    steps = _trained_steps(config)
    return TrainedNoise(
        kind=kind, prediction_type=FLOW, samplers=samplers, most_steps=steps, most_lcm_steps=steps
    )


def _edm(config: Mapping[str, Any]) -> TrainedNoise:
    # EDM's `epsilon` is its own F, the velocity with the other sign (`render.models.unet`).
    _one_of(config, "prediction_type", (EPSILON, V_PREDICTION), EPSILON)
    _one_of(config, "sigma_schedule", ("karras", "exponential"), "karras")
    return TrainedNoise(
        kind=NoiseKind.EDM,
        prediction_type=V_PREDICTION,
        samplers=("euler", "euler-ancestral", "dpmpp-2m"),
        most_steps=_trained_steps(config),
    )


def _trigflow(config: Mapping[str, Any]) -> TrainedNoise:
    _one_of(config, "prediction_type", ("trigflow",), "trigflow")
    return TrainedNoise(kind=NoiseKind.TRIGFLOW, prediction_type=V_PREDICTION, samplers=("lcm",))


def _check_sigma_flags(config: Mapping[str, Any]) -> None:
    given = [flag for flag in _SIGMA_FLAGS if config.get(flag)]
    if len(given) > 1:
        raise ValueError(f"with {' and '.join(given)}; use one of them")
    if "use_beta_sigmas" in given and importlib.util.find_spec("scipy") is None:
        raise ValueError("with use_beta_sigmas, which needs scipy; install scipy")


def _one_of(config: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = config.get(name, default)
    if value not in allowed:
        raise ValueError(f"with {name} {value!r}; it must be {' or '.join(allowed)}")
    return str(value)


def _trained_steps(config: Mapping[str, Any]) -> int:
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"with num_train_timesteps {steps!r}; it must be a whole number")
    return steps


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
