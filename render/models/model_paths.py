"""The models that a spec names: the one that renders, and perhaps a refiner that finishes. No torch.

A refiner goes on in the latents, on the noise levels and with the kind of prediction of the model before it,
so the two must agree on these. Both are part of the picture: `ModelInfo.digest` of a pair is both digests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from render.errors import ModelNotUsable
from render.model_info import ModelInfo
from render.models.folder import read_config, read_model_info, read_refiner_info, resolve_model

_TRAINING: dict[str, Any] = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
"""What a scheduler's configuration says of the noise that its model knows, with diffusers' defaults."""


@dataclass(frozen=True, kw_only=True)
class ModelPaths:
    """Where the models of a spec lie on this machine."""

    model: Path
    refiner: Path | None = None

    @property
    def names(self) -> dict[str, Any]:
        """As a process hands them to another: `ModelPaths.named` reads it."""
        return {"model": str(self.model), "refiner": None if self.refiner is None else str(self.refiner)}

    @classmethod
    def named(cls, names: dict[str, Any]) -> ModelPaths:
        """The reverse of `names`."""
        refiner = names["refiner"]
        return cls(model=Path(names["model"]), refiner=None if refiner is None else Path(refiner))


def find_model_paths(model: str, refiner: str | None) -> ModelPaths:
    """The folders of what a spec names; raises `ModelNotUsable` when one is not to be had."""
    if refiner is None:
        return ModelPaths(model=resolve_model(model))
    try:
        return ModelPaths(model=resolve_model(model), refiner=resolve_model(refiner))
    except ModelNotUsable as exc:
        raise _of_its_field(exc, model, refiner) from exc


def model_info(folders: ModelPaths) -> ModelInfo:
    """The model's info; with a refiner its digest is `MODEL+REFINER`, as `Spec.canonical_json` takes it.

    Raises `ModelNotUsable` for a folder that cannot be used, and for a refiner that cannot go on from what
    the model leaves.
    """
    info = read_model_info(folders.model)
    if folders.refiner is None:
        return info
    refiner = refiner_info(folders.refiner)
    _check_pair(folders.model, info, folders.refiner, refiner)
    return replace(info, digest=f"{info.digest}+{refiner.digest}")


def refiner_info(path: Path) -> ModelInfo:
    """A refiner's own info; raises `ModelNotUsable` of the field `refiner`."""
    try:
        return read_refiner_info(path)
    except ModelNotUsable as exc:
        raise ModelNotUsable("refiner", exc.value, exc.fix) from exc


def _of_its_field(exc: ModelNotUsable, model: str, refiner: str) -> ModelNotUsable:
    return ModelNotUsable("refiner", exc.value, exc.fix) if exc.value == refiner != model else exc


def _check_pair(model: Path, info: ModelInfo, refiner: Path, finishing: ModelInfo) -> None:
    def refuse(what: str) -> ModelNotUsable:
        return ModelNotUsable("refiner", str(refiner), f"{what}; use a refiner made for {model}")

    if (finishing.latent_channels, finishing.scale_factor) != (info.latent_channels, info.scale_factor):
        raise refuse(
            f"has {finishing.latent_channels} latent channels of {finishing.scale_factor} px, the model "
            f"{info.latent_channels} of {info.scale_factor} px"
        )
    if finishing.takes_guidance != info.takes_guidance:
        raise refuse("takes guidance in another way than the model")
    ours, theirs = (_training(path) for path in (model, refiner))
    for name in _TRAINING:
        if ours[name] != theirs[name]:
            raise refuse(f"was trained with {name} {theirs[name]!r}, the model with {ours[name]!r}")


def _training(path: Path) -> dict[str, Any]:
    config = read_config(path, "scheduler")
    return {name: config.get(name, default) for name, default in _TRAINING.items()}
