"""Which noise a model was trained with, and what can sample it, from its scheduler's configuration alone.

Without torch, so that a plan refuses what the engine cannot express. The steps themselves are read from
diffusers' own scheduler object (`render.sampling.diffusers_schedule`).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection, Mapping
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
_BETA_DEFAULTS: Mapping[str, tuple[float, float, str]] = {
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), (0.00085, 0.012, "scaled_linear")),
    **dict.fromkeys(
        (
            "DPMSolverSDEScheduler",
            "HeunDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
        ),
        (0.00085, 0.012, "linear"),
    ),
}
"""beta_start, beta_end and beta_schedule of the classes whose defaults are not those of the others."""
_LINEAR_BETAS = (0.0001, 0.02, "linear")
_BETA_FIELDS = ("beta_start", "beta_end", "beta_schedule")
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_SIGMA_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_MIDPOINT = ("midpoint", "logrho", "bh1", "bh2")
"""Solver types that DPM-Solver++ takes for `midpoint`."""
_FLOW_SAMPLERS = tuple(name for name in SAMPLERS if name != "ddim")


def with_own_betas(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that another class than its own may read: the betas that it leaves to the defaults of
    its class are written out, since they say how the model was trained."""
    found = dict(config)
    name = config.get("_class_name")
    if name in _BETA_CLASSES:
        own = _BETA_DEFAULTS.get(str(name), _LINEAR_BETAS)
        own_betas: dict[str, Any] = dict(zip(_BETA_FIELDS, own, strict=True))
        found = own_betas | found
        # diffusers takes what is listed here for not given.
        filled = [name for name in found.get("_use_default_values", ()) if name not in _BETA_FIELDS]
        found["_use_default_values"] = filled
    return found


def check_same_noise(config: Mapping[str, Any], used_as: str) -> None:
    """Raise `ValueError` for the configuration of a scheduler of another kind than the class it is used as.

    diffusers passes over what that class does not know, and takes its defaults for the rest.
    """
    own = config.get("_class_name", used_as)
    if own == used_as or _kind_of_class(own) is _kind_of_class(used_as):
        return
    raise ValueError(f"{used_as} in model_index.json and {own} in scheduler_config.json; correct one of them")


def _kind_of_class(name: Any) -> NoiseKind | str:
    kinds: tuple[tuple[Collection[str], NoiseKind], ...] = (
        (_BETA_CLASSES, NoiseKind.BETAS),
        (_FLOW_CLASSES, NoiseKind.FLOW_MATCH),
        (_EDM_CLASSES, NoiseKind.EDM),
        ((_SCM,), NoiseKind.TRIGFLOW),
    )
    return next((kind for names, kind in kinds if name in names), str(name))


def trained_noise(config: Mapping[str, Any]) -> TrainedNoise:
    """The noise of a model, from its `scheduler_config.json`.

    Raises `ValueError` with a problem to follow "has a scheduler " where the engine cannot express it.
    """
    name = config.get("_class_name")
    _check_numbers(config)
    _check_sigma_flags(config)
    if config.get("thresholding") and (name not in _BETA_CLASSES or config.get("use_flow_sigmas")):
        raise ValueError("with thresholding, which is for pixels and not for latents; set it to false")
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
    _one_of(config, "final_sigmas_type", ("zero", "sigma_min"), "zero")
    steps, betas = _trained_steps(config), config.get("trained_betas")
    if betas is not None and (not isinstance(betas, list) or len(betas) != steps):
        raise ValueError(f"with {steps} num_train_timesteps and trained_betas of another number; correct one")
    if betas is not None and not all(_is_number(beta) and 0.0 <= beta < 1.0 for beta in betas):
        raise ValueError("with trained_betas that are not from 0 to 1; correct them")
    if config.get("snr_shift_scale", 1.0) != 1.0:
        raise ValueError("with snr_shift_scale, which has no reader here; use a text-to-image model")
    lcm_steps = _count(config, "original_inference_steps", 50)
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
    # Both are for pixels: the engine does not clip latents, and diffusers' schedulers of these samplers do.
    if config.get("clip_sample"):
        unfit |= {"ddim", "lcm"}
    if config.get("thresholding"):
        unfit |= {"ddim", "dpmpp-2m", "lcm"}
    if config.get("beta_schedule") == "squaredcos_cap_v2" and any(config.get(flag) for flag in _SIGMA_FLAGS):
        # Several of its steps fall on one timestep, and diffusers' own scheduler breaks off.
        unfit.add("dpmpp-2m")
    if not _steps_as_2m(config):
        unfit.add("dpmpp-2m")
    if config.get("interpolation_type", "linear") != "linear":
        # diffusers' Euler makes one sigma too many then, and its last step leaves noise in the image.
        unfit.add("euler")
    return unfit


def _steps_as_2m(config: Mapping[str, Any]) -> bool:
    """Whether `dpmpp-2m` takes the steps of a folder's own DPM-Solver: not of one of another order, of the
    solver in noise, of the stochastic one. Folders of other schedulers say nothing of it."""
    if config.get("_class_name") not in ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"):
        return True
    # To sigma 0 the last step is of first order whatever else is said.
    ends = config.get("final_sigmas_type", "zero") == "zero" or (
        config.get("lower_order_final", True) and not config.get("euler_at_final")
    )
    return (
        bool(ends)
        and config.get("solver_order", 2) == 2
        and config.get("algorithm_type", "dpmsolver++") in ("dpmsolver++", "deis")
        and config.get("solver_type", "midpoint") in _MIDPOINT
    )


def _flow_match(config: Mapping[str, Any]) -> TrainedNoise:
    if config.get("invert_sigmas"):
        raise ValueError("with invert_sigmas, which only video models use; use a text-to-image model")
    if config.get("shift", 1.0) is None and not config.get("use_dynamic_shifting"):
        raise ValueError("with shift null; it must be a number above 0")
    if config.get("scale_factors"):
        raise ValueError("with scale_factors, which change the size of the latents; use another")
    _one_of(config, "time_shift_type", ("exponential", "linear"), "exponential")
    samplers = ("lcm",) if config.get("stochastic_sampling") else _FLOW_SAMPLERS
    return _flow(NoiseKind.FLOW_MATCH, config, samplers)


def _flow_sigmas(config: Mapping[str, Any]) -> TrainedNoise:
    if not config.get("use_flow_sigmas"):
        raise ValueError("with prediction_type 'flow_prediction' without use_flow_sigmas; set both or none")
    _one_of(config, "prediction_type", ("flow_prediction",), EPSILON)
    _one_of(config, "final_sigmas_type", ("zero", "sigma_min"), "zero")
    if config.get("use_dynamic_shifting"):
        _one_of(config, "time_shift_type", ("exponential",), "exponential")
    other = next((flag for flag in _SIGMA_FLAGS if config.get(flag)), None)
    if other is not None:
        raise ValueError(f"with use_flow_sigmas and {other}; use one of them")
    if config.get("shift_terminal"):
        raise ValueError("with use_flow_sigmas and shift_terminal, which has no reader here; leave it out")
    samplers = tuple(name for name in _FLOW_SAMPLERS if name != "dpmpp-2m" or _steps_as_2m(config))
    return _flow(NoiseKind.FLOW_SIGMAS, config, samplers)


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
        samplers=("euler", "euler-ancestral", *(["dpmpp-2m"] if _steps_as_2m(config) else [])),
        most_steps=_trained_steps(config),
    )


def _trigflow(config: Mapping[str, Any]) -> TrainedNoise:
    _one_of(config, "prediction_type", ("trigflow",), "trigflow")
    return TrainedNoise(kind=NoiseKind.TRIGFLOW, prediction_type=V_PREDICTION, samplers=("lcm",))


def _check_sigma_flags(config: Mapping[str, Any]) -> None:
    if config.get("_class_name") == "DPMSolverSDEScheduler" and importlib.util.find_spec("torchsde") is None:
        raise ValueError("DPMSolverSDEScheduler, which needs torchsde; install torchsde")
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


_NUMBERS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        ("sigma_min", "sigma_max", "sigma_data", "rho", "shift", "flow_shift", "timestep_scaling"),
        lambda value: value > 0,
        "a number above 0",
    ),
    (("beta_start", "beta_end", "shift_terminal"), lambda value: 0 <= value < 1, "a number from 0 to 1"),
    (("base_shift", "max_shift"), lambda _: True, "a number"),
)
_SWITCHES = (
    *_SIGMA_FLAGS,
    *("use_flow_sigmas", "use_dynamic_shifting", "rescale_betas_zero_snr", "set_alpha_to_one", "clip_sample"),
    *("thresholding", "invert_sigmas", "stochastic_sampling"),
)


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Refuse values of other types than diffusers' own, which it would take as they are or break off at."""
    for name in _SWITCHES:
        value = config.get(name)
        if not (value is None or isinstance(value, bool)):
            raise ValueError(f"with {name} {value!r}; it must be true or false")
    for names, allowed, fix in _NUMBERS:
        for name in names:
            value = config.get(name)
            if value is not None and not (_is_number(value) and allowed(value)):
                raise ValueError(f"with {name} {value!r}; it must be {fix}")
    for low, high in (("beta_start", "beta_end"), ("sigma_min", "sigma_max")):
        if config.get(low) is not None and config.get(high) is not None and config[low] > config[high]:
            raise ValueError(f"with {low} {config[low]!r} above {high} {config[high]!r}; exchange them")
    offset = config.get("steps_offset", 0)
    if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset < _trained_steps(config):
        raise ValueError(f"with steps_offset {offset!r}; it must be a whole number from 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"with {name} {value!r}; it must be a whole number")
    return value


def _trained_steps(config: Mapping[str, Any]) -> int:
    return _count(config, "num_train_timesteps", 1000)


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
