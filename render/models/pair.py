"""The models that a spec names: the one that renders, and perhaps a refiner that finishes. No torch.

A refiner goes on in the latents, on the noise levels and with the kind of prediction of the model before it,
so the two must agree on these. Both are part of the picture: `ModelFacts.digest` of a pair is both digests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from render.errors import ModelNotUsable
from render.models.adapter import ModelFacts
from render.models.folder import read_config, read_facts, read_refiner_facts, resolve_model

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
class Folders:
    """Where the models of a spec lie on this machine."""

    model: Path
    refiner: Path | None = None

    @property
    def names(self) -> dict[str, Any]:
        """As a process hands them to another: `Folders.named` reads it."""
        return {"model": str(self.model), "refiner": None if self.refiner is None else str(self.refiner)}

    @classmethod
    def named(cls, names: dict[str, Any]) -> Folders:
        """The reverse of `names`."""
        refiner = names["refiner"]
        return cls(model=Path(names["model"]), refiner=None if refiner is None else Path(refiner))


def find_models(model: str, refiner: str | None) -> Folders:
    """The folders of what a spec names; raises `ModelNotUsable` when one is not to be had."""
    if refiner is None:
        return Folders(model=resolve_model(model))
    try:
        return Folders(model=resolve_model(model), refiner=resolve_model(refiner))
    except ModelNotUsable as exc:
        raise _of_its_field(exc, model, refiner) from exc


def facts_of(folders: Folders) -> ModelFacts:
    """The model's facts; with a refiner its digest is `MODEL+REFINER`, as `Spec.canonical_json` takes it.

    Raises `ModelNotUsable` for a folder that cannot be used, and for a refiner that cannot go on from what
    the model leaves.
    """
    facts = read_facts(folders.model)
    if folders.refiner is None:
        return facts
    refiner = refiner_facts(folders.refiner)
    _check_pair(folders.model, facts, folders.refiner, refiner)
    return replace(facts, digest=f"{facts.digest}+{refiner.digest}")


def refiner_facts(path: Path) -> ModelFacts:
    """A refiner's own facts; raises `ModelNotUsable` of the field `refiner`."""
    try:
        return read_refiner_facts(path)
    except ModelNotUsable as exc:
        raise ModelNotUsable("refiner", exc.value, exc.fix) from exc


def _of_its_field(exc: ModelNotUsable, model: str, refiner: str) -> ModelNotUsable:
    return ModelNotUsable("refiner", exc.value, exc.fix) if exc.value == refiner != model else exc


def _check_pair(model: Path, facts: ModelFacts, refiner: Path, finishing: ModelFacts) -> None:
    def refuse(what: str) -> ModelNotUsable:
        return ModelNotUsable("refiner", str(refiner), f"{what}; use a refiner made for {model}")

    if (finishing.latent_channels, finishing.scale_factor) != (facts.latent_channels, facts.scale_factor):
        raise refuse(
            f"has {finishing.latent_channels} latent channels of {finishing.scale_factor} px, the model "
            f"{facts.latent_channels} of {facts.scale_factor} px"
        )
    if finishing.takes_guidance != facts.takes_guidance:
        raise refuse("takes guidance in another way than the model")
    ours, theirs = (_training(path) for path in (model, refiner))
    for name in _TRAINING:
        if ours[name] != theirs[name]:
            raise refuse(f"was trained with {name} {theirs[name]!r}, the model with {ours[name]!r}")


def _training(path: Path) -> dict[str, Any]:
    config = read_config(path, "scheduler")
    return {name: config.get(name, default) for name, default in _TRAINING.items()}
