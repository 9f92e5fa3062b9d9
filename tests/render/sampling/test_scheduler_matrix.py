"""Every scheduler configuration of a folder renders like diffusers' own scheduler, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from render.errors import BadInput, ModelNotUsable
from render.models.folder import read_model_info
from render.plan.plan import make_plan
from render.sampling.diffusers_schedule import noise_schedule, stock_scheduler
from render.sampling.process import EPSILON
from render.sampling.registry import find_sampler
from render.sampling.samplers import SamplerState, SamplerStep, to_denoised
from render.sampling.scheduler_config import NoiseKind, trained_noise
from render.spec import SAMPLERS, Spec
from tests.render.models.tiny_folders import BETAS as BETAS_OF_STABLE_DIFFUSION
from tests.render.models.tiny_folders import save_sd

STABLE_DIFFUSION = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
VELOCITY = {"prediction_type": "v_prediction"}
FLOW_EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
FLOW_SOLVER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}
EDM = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
}
BETAS = {"trained_betas": [round(0.0001 + 0.001 * i, 6) for i in range(20)], "num_train_timesteps": 20}

RENDERED: dict[str, dict[str, Any]] = {
    "stable diffusion": STABLE_DIFFUSION,
    "linspace": STABLE_DIFFUSION | {"timestep_spacing": "linspace"},
    "trailing": STABLE_DIFFUSION | {"timestep_spacing": "trailing"},
    "velocity": STABLE_DIFFUSION | VELOCITY,
    "sample": STABLE_DIFFUSION | {"prediction_type": "sample"},
    "karras": STABLE_DIFFUSION | {"use_karras_sigmas": True},
    "exponential": STABLE_DIFFUSION | {"use_exponential_sigmas": True},
    "beta": STABLE_DIFFUSION | {"use_beta_sigmas": True},
    "lu": STABLE_DIFFUSION | {"use_lu_lambdas": True, "_class_name": "DPMSolverMultistepScheduler"},
    "cosine": STABLE_DIFFUSION | COSINE | VELOCITY,
    "cosine karras": STABLE_DIFFUSION | COSINE | VELOCITY | {"use_karras_sigmas": True},
    "zero snr velocity": STABLE_DIFFUSION | ZERO_SNR | VELOCITY,
    "zero snr velocity leading": STABLE_DIFFUSION | VELOCITY | {"rescale_betas_zero_snr": True},
    "zero snr epsilon": STABLE_DIFFUSION | ZERO_SNR,
    "zero snr epsilon leading": STABLE_DIFFUSION | {"rescale_betas_zero_snr": True},
    "trained betas": STABLE_DIFFUSION | BETAS,
    "ends above 0": STABLE_DIFFUSION | {"final_sigmas_type": "sigma_min"},
    "alpha not one": STABLE_DIFFUSION | {"set_alpha_to_one": False, "_class_name": "DDIMScheduler"},
    "continuous": STABLE_DIFFUSION | VELOCITY | {"timestep_type": "continuous"},
    "log interpolation": STABLE_DIFFUSION | {"interpolation_type": "log_linear"},
    "third order": STABLE_DIFFUSION | {"solver_order": 3, "_class_name": "DPMSolverMultistepScheduler"},
    "first order": STABLE_DIFFUSION | {"solver_order": 1, "_class_name": "DPMSolverMultistepScheduler"},
    "heun": STABLE_DIFFUSION | {"solver_type": "heun", "_class_name": "DPMSolverMultistepScheduler"},
    "stochastic solver": STABLE_DIFFUSION
    | {"algorithm_type": "sde-dpmsolver++", "_class_name": "DPMSolverMultistepScheduler"},
    "solver in noise": STABLE_DIFFUSION
    | {
        "algorithm_type": "dpmsolver",
        "final_sigmas_type": "sigma_min",
        "_class_name": "DPMSolverMultistepScheduler",
    },
    "first order at the end": STABLE_DIFFUSION
    | {
        "euler_at_final": True,
        "final_sigmas_type": "sigma_min",
        "_class_name": "DPMSolverMultistepScheduler",
    },
    "ends at 0 anyway": STABLE_DIFFUSION
    | {"euler_at_final": True, "lower_order_final": False, "_class_name": "DPMSolverMultistepScheduler"},
    "logrho": STABLE_DIFFUSION | {"solver_type": "logrho", "_class_name": "DPMSolverMultistepScheduler"},
    "order of another": STABLE_DIFFUSION | {"solver_order": 3, "_class_name": "UniPCMultistepScheduler"},
    "unipc": STABLE_DIFFUSION | {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2"},
    "pndm": STABLE_DIFFUSION | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "lcm": STABLE_DIFFUSION | {"_class_name": "LCMScheduler"},
    "edm": EDM,
    "edm velocity": EDM | VELOCITY,
    "edm exponential": EDM | {"sigma_schedule": "exponential", "sigma_data": 1.0},
    "edm ends above 0": EDM | {"_class_name": "EDMEulerScheduler", "final_sigmas_type": "sigma_min"},
    "flow": FLOW_EULER,
    "flow shift": FLOW_EULER | {"shift": 3.0},
    "flow karras": FLOW_EULER | {"use_karras_sigmas": True},
    "flow exponential": FLOW_EULER | {"use_exponential_sigmas": True},
    "flow beta": FLOW_EULER | {"use_beta_sigmas": True},
    "flow terminal": FLOW_EULER | {"shift_terminal": 0.02},
    "flow dynamic": FLOW_EULER | {"use_dynamic_shifting": True},
    "flow dynamic linear": FLOW_EULER | {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "flow stochastic": FLOW_EULER | {"stochastic_sampling": True},
    "flow lcm": {"_class_name": "FlowMatchLCMScheduler", "shift": 3.0},
    "flow solver": FLOW_SOLVER,
    "flow stochastic solver": FLOW_SOLVER | {"algorithm_type": "sde-dpmsolver++"},
    "edm third order": EDM | {"solver_order": 3},
    "flow solver shift": FLOW_SOLVER | {"flow_shift": 3.0},
    "flow solver ends above 0": FLOW_SOLVER | {"final_sigmas_type": "sigma_min"},
    "trigflow": {"_class_name": "SCMScheduler", "sigma_data": 0.5},
    "clipped": STABLE_DIFFUSION | {"clip_sample": True},
    "thresholding": STABLE_DIFFUSION | {"thresholding": True},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "heun flow": ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "has no reader here"),
    "video": ({"_class_name": "CogVideoXDDIMScheduler"}, "has no reader here"),
    "no name": ({}, "has no reader here"),
    "inverted": (FLOW_EULER | {"invert_sigmas": True}, "invert_sigmas"),
    "time shift": (FLOW_EULER | {"time_shift_type": "cosine"}, "time_shift_type"),
    "two sigma tables": (
        FLOW_EULER | {"use_karras_sigmas": True, "use_beta_sigmas": True},
        "use one of them",
    ),
    "flow prediction alone": (STABLE_DIFFUSION | {"prediction_type": "flow_prediction"}, "use_flow_sigmas"),
    "flow sigmas alone": (FLOW_SOLVER | {"prediction_type": "epsilon"}, "prediction_type 'epsilon'"),
    "sigmoid betas": (STABLE_DIFFUSION | {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
    "few betas": (STABLE_DIFFUSION | {"trained_betas": [0.1, 0.2]}, "trained_betas of another number"),
    "text steps": (STABLE_DIFFUSION | {"num_train_timesteps": "1000"}, "num_train_timesteps '1000'"),
    "edm of x0": (EDM | {"prediction_type": "sample"}, "prediction_type 'sample'"),
    "flow and karras": (FLOW_SOLVER | {"use_karras_sigmas": True}, "use_flow_sigmas and use_karras_sigmas"),
    "flow terminal solver": (FLOW_SOLVER | {"shift_terminal": 0.02}, "shift_terminal"),
    "growing latents": (
        {"_class_name": "FlowMatchLCMScheduler", "scale_factors": [1.0, 2.0]},
        "scale_factors",
    ),
    "no shift": (FLOW_EULER | {"shift": 0}, "shift 0"),
    "shift in words": (FLOW_EULER | {"shift": "3.0"}, "shift '3.0'"),
    "betas in words": (STABLE_DIFFUSION | {"beta_start": "0.00085"}, "beta_start '0.00085'"),
    "betas above 1": (STABLE_DIFFUSION | {"beta_end": 2}, "beta_end 2"),
    "betas turned": (STABLE_DIFFUSION | {"beta_start": 0.5}, "exchange them"),
    "switch in words": (STABLE_DIFFUSION | {"use_karras_sigmas": "false"}, "must be true or false"),
    "offset": (STABLE_DIFFUSION | {"steps_offset": 1.5}, "steps_offset 1.5"),
    "ends at": (STABLE_DIFFUSION | {"final_sigmas_type": "one"}, "final_sigmas_type 'one'"),
    "no lcm steps": (STABLE_DIFFUSION | {"original_inference_steps": None}, "original_inference_steps None"),
    "flow thresholding": (FLOW_SOLVER | {"thresholding": True}, "thresholding"),
    "snr shift": (STABLE_DIFFUSION | {"snr_shift_scale": 3.0}, "snr_shift_scale"),
}
EXCLUDED = {
    "first order": {"dpmpp-2m"},
    "third order": {"dpmpp-2m"},
    "heun": {"dpmpp-2m"},
    "stochastic solver": {"dpmpp-2m"},
    "solver in noise": {"dpmpp-2m"},
    "first order at the end": {"dpmpp-2m"},
    "flow stochastic solver": {"ddim", "dpmpp-2m"},
    "edm third order": {"ddim", "dpmpp-2m", "lcm"},
    "cosine karras": {"dpmpp-2m"},
    "zero snr epsilon": {"ddim", "lcm"},
    "zero snr epsilon leading": {"lcm"},
    "trained betas": {"lcm"},
    "log interpolation": {"euler"},
    "edm": {"ddim", "lcm"},
    "flow": {"ddim"},
    "flow stochastic": set(SAMPLERS) - {"lcm"},
    "trigflow": set(SAMPLERS) - {"lcm"},
    "clipped": {"ddim", "lcm"},
    "thresholding": {"ddim", "dpmpp-2m", "lcm"},
}
"""The samplers that a configuration excludes; for families of them by the first word."""
WEIGHTS = torch.randn((4, 4, 3, 3), generator=torch.Generator().manual_seed(5)) * 0.2


def network(x: Tensor, timestep: float) -> Tensor:
    """Depends on its input and on the timestep; of unit order, as a network's answer is."""
    return torch.tanh(functional.conv2d(x, WEIGHTS, padding=1)) + 0.3 * torch.tanh(x) + timestep / 4000


def draws() -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(3)
    return lambda: torch.randn((1, 4, 8, 8), generator=generator)


def options_of(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """What a family's pipeline gives `set_timesteps`."""
    if config.get("use_dynamic_shifting"):
        return {"mu": 0.8}
    if config["_class_name"] == "SCMScheduler" and steps != 2:
        return {"intermediate_timesteps": None}
    return {}


def stock(config: dict[str, Any], sampler: str, steps: int, noise: Tensor) -> Tensor:
    """The loop of a diffusers pipeline around its scheduler."""
    scheduler = stock_scheduler(config, sampler)
    scheduler.set_timesteps(steps, **options_of(config, steps))
    generator = torch.Generator().manual_seed(3)
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    count, data = (-1, 0.5) if config["_class_name"] == "SCMScheduler" else (steps, 1.0)
    latents = latents * data
    for timestep in scheduler.timesteps[:count]:
        takes_noise = find_sampler(sampler).stochastic
        scaled = (
            scheduler.scale_model_input(latents, timestep)
            if hasattr(scheduler, "scale_model_input")
            else latents
        )
        options = {"generator": generator} if takes_noise else {}
        prediction = network(scaled / data, float(timestep)) * data
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
    return latents / data


def ours(config: dict[str, Any], sampler: str, steps: int, noise: Tensor) -> Tensor:
    schedule = noise_schedule(config, sampler, steps, options_of(config, steps))
    trained, entry, draw = trained_noise(config), find_sampler(sampler), draws()
    sign = (
        -1.0 if trained.kind is NoiseKind.EDM and config.get("prediction_type", EPSILON) == EPSILON else 1.0
    )
    state = SamplerState(noise * schedule.initial_scale)
    for index, timestep in enumerate(schedule.timesteps):
        level = schedule.level(index)
        prediction = network(state.x * level.input_scale, timestep) * sign
        denoised = to_denoised(prediction, state.x, level, trained.prediction_type)
        unit = draw() if entry.stochastic else None
        state = entry.step(
            SamplerStep(index=index, schedule=schedule, state=state, denoised=denoised, noise=unit)
        )
    return state.x * schedule.final_scale


def has_stock_step(kind: NoiseKind, config: dict[str, Any], sampler: str) -> bool:
    """Whether diffusers steps this noise by this sampler at all; the engine steps some more."""
    if kind is NoiseKind.BETAS:
        return not (sampler == "euler-ancestral" and config.get("prediction_type") == "sample")
    if kind is NoiseKind.EDM:
        return sampler in ("euler", "dpmpp-2m")
    if kind is NoiseKind.FLOW_SIGMAS:
        return sampler == "dpmpp-2m"
    stochastic = (
        config.get("stochastic_sampling") or "LCM" in config["_class_name"] or kind is NoiseKind.TRIGFLOW
    )
    return sampler == ("lcm" if stochastic else "euler")


@pytest.mark.parametrize(
    ("sampler", "steps"), [*((sampler, 16) for sampler in SAMPLERS), ("dpmpp-2m", 3), ("lcm", 2)]
)
@pytest.mark.parametrize("name", RENDERED)
def test_a_configuration_renders_like_diffusers_scheduler(name: str, sampler: str, steps: int) -> None:
    config = RENDERED[name]
    trained = trained_noise(config)
    if sampler not in trained.samplers:
        assert sampler in EXCLUDED.get(name, EXCLUDED.get(name.split()[0], set()))
        return
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7))
    result = ours(config, sampler, steps, noise)
    assert result.isfinite().all() and result.std() > 0.1
    if has_stock_step(trained.kind, config, sampler):
        expected = stock(config, sampler, steps, noise)
        # Euler's canvas is of the size of sigma, which both round in float32, in another order.
        largest = max(noise_schedule(config, sampler, steps, options_of(config, steps)).sigmas)
        rounding = largest / 30 if sampler.startswith("euler") else 1.0
        bound = 1e-5 * max(1.0, float(expected.std()), rounding)
        assert (result - expected).abs().max() <= bound


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_one_sentence(name: str) -> None:
    config, problem = REFUSED[name]
    with pytest.raises(ValueError, match=problem):
        trained_noise(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd(tmp_path_factory.mktemp("model") / "sd", "v_prediction", BETAS_OF_STABLE_DIFFUSION)


def folder_with(config: dict[str, Any], original: Path, folder: Path) -> Path:
    shutil.copytree(original, folder)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config.get("_class_name", "")]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be_rendered_is_refused_before_the_plan(
    name: str, folder: Path, tmp_path: Path
) -> None:
    config, problem = REFUSED[name]
    with pytest.raises(ModelNotUsable, match=problem):
        read_model_info(folder_with(config, folder, tmp_path / "model"))


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler", "HeunDiscreteScheduler", "DDIMScheduler"])
def test_betas_that_a_configuration_leaves_out_are_those_of_its_class(name: str) -> None:
    own = getattr(diffusers, name)()
    for config in ({"_class_name": name}, dict(own.config) | {"_class_name": name}):
        for sampler in SAMPLERS:
            assert torch.equal(stock_scheduler(config, sampler).betas, own.betas)


@pytest.mark.parametrize("own", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "IPNDMScheduler"])
def test_a_configuration_for_another_kind_of_scheduler_is_refused(
    own: str, folder: Path, tmp_path: Path
) -> None:
    model = folder_with(STABLE_DIFFUSION, folder, tmp_path / "model")
    (model / "scheduler/scheduler_config.json").write_text(
        json.dumps(STABLE_DIFFUSION | {"_class_name": own})
    )
    with pytest.raises(ModelNotUsable, match=f"model_index.json and {own} in scheduler_config.json"):
        read_model_info(model)
    config = STABLE_DIFFUSION | {"_class_name": "DDIMScheduler"}
    (model / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    read_model_info(model)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("trigflow", "has the scheduler SCMScheduler, which no sd was trained for"),
        ("flow dynamic", "use_dynamic_shifting"),
    ],
)
def test_a_unet_takes_no_noise_that_depends_on_a_transformer(
    name: str, problem: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotUsable, match=problem):
        read_model_info(folder_with(RENDERED[name], folder, tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        (
            "edm",
            {"sampler": "ddim"},
            "sampler: 'ddim' cannot step the noise of m as its scheduler does; use euler, euler-anc",
        ),
        ("flow stochastic", {}, "sampler: 'euler' cannot step the noise of m as its scheduler does; use lcm"),
        ("trained betas", {"steps": 25}, "steps: 25 do not fit the euler sampler; use at most 20"),
        (
            "stable diffusion",
            {"sampler": "lcm", "steps": 51},
            "steps: 51 do not fit the lcm sampler; use at most 50",
        ),
    ],
)
def test_a_plan_refuses_a_sampler_or_steps_that_do_not_fit(
    name: str, fields: dict[str, Any], problem: str, folder: Path, tmp_path: Path
) -> None:
    info = read_model_info(folder_with(RENDERED[name], folder, tmp_path / "model"))
    spec = Spec.from_mapping({"prompt": "x", "model": "m", "width": 64, "height": 64} | fields)
    with pytest.raises(BadInput, match=problem):
        make_plan(spec, info, 1)
