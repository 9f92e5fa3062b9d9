"""The models that a spec names: the base model, and optionally a refiner for the last steps. No torch.

A refiner continues with the latents, the noise levels and the prediction type of the model, so the two must
agree on these. Both decide the pixels: `ModelInfo.digest` of a pair consists of both digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from render.errors import BadInput, ModelNotUsable
from render.gguf_file import is_gguf
from render.model_info import ModelInfo
from render.models.base_folder import join_base, original_file
from render.models.config_files import read_config, read_json
from render.models.controlnet_folder import check_controlnets
from render.models.folder import (
    family_of,
    local_path,
    read_model_info,
    read_refiner_info,
    resolve_model,
    text_width,
)
from render.models.known_names import lasting_name
from render.models.packaged import packaged_models
from render.models.vae_folder import read_vae_info, resolve_vae, with_vae
from render.spec import NO_QUANTIZATION, Spec
from render.spec.embedding import Embedding
from render.spec.ip_adapter import IpAdapter
from render.spec.lora import Lora

_TRAINING: dict[str, Any] = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
"""The fields of a scheduler's configuration that describe the training noise, with diffusers' defaults."""


@dataclass(frozen=True, kw_only=True)
class ModelPaths:
    """The local folders of a spec's models."""

    model: Path
    refiner: Path | None = None
    vae: Path | None = None
    """The folder of the autoencoder that replaces the model's own."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types, for another process."""
        return {
            "model": str(self.model),
            "refiner": None if self.refiner is None else str(self.refiner),
            "vae": None if self.vae is None else str(self.vae),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> ModelPaths:
        """The reverse of `to_json`."""
        refiner, vae = document["refiner"], document.get("vae")
        return cls(
            model=Path(document["model"]),
            refiner=None if refiner is None else Path(refiner),
            vae=None if vae is None else Path(vae),
        )


def find_model_paths(
    model: str, refiner: str | None, vae: str | None = None, base: str | None = None
) -> ModelPaths:
    """The folders of the models that a spec names (`Spec.model_names`).

    A single file with a `base` is a folder of links to both (`render.models.base_folder`). Raises
    `ModelNotUsable` when one is not available, or does not go with another.
    """
    own_vae = None if vae is None else resolve_vae(vae)
    try:
        found = resolve_model(model)
        refiner_path = None if refiner is None else resolve_model(refiner)
    except ModelNotUsable as exc:
        if refiner is None:
            raise
        raise _with_field(exc, model, refiner) from exc
    if base is not None:
        if not found.is_file():
            raise ModelNotUsable(
                "base", base, "completes a single file, and the model is a folder; leave it out"
            )
        found = join_base(found.absolute(), resolve_base(base))
    return ModelPaths(model=found, refiner=refiner_path, vae=own_vae)


def resolve_base(name: str) -> Path:
    """The folder that completes a single file; raises `ModelNotUsable` when it is not on this machine."""
    try:
        found = resolve_model(name).absolute()
    except ModelNotUsable as exc:
        raise ModelNotUsable("base", exc.value, exc.fix) from exc
    if found.is_file():
        raise ModelNotUsable("base", name, "is a file; give a folder in diffusers' format")
    return found


def absolute_name(name: str) -> str:
    """A model's name as it means the same everywhere and later: of a local folder, its full path; of a name
    that a farm knows, one that stands for the same files.

    Raises `ModelNotUsable`.
    """
    if name in packaged_models():
        return name
    if (found := local_path(name)) is not None:
        return str(found.absolute())
    return lasting_name(name) or name


def model_info(paths: ModelPaths) -> ModelInfo:
    """The model's info; with a refiner its digest is `MODEL+REFINER`, as `Spec.canonical_json` expects.

    Raises `ModelNotUsable` for a folder that cannot be used, and for a refiner that does not fit the
    model.
    """
    info = read_model_info(paths.model)
    if paths.vae is not None:
        info = with_vae(info, read_vae_info(paths.vae), str(paths.vae))
    if paths.refiner is None:
        return info
    refiner_details = refiner_info(paths.refiner)
    _check_pair(paths.model, info, paths.refiner, refiner_details)
    return replace(info, digest=f"{info.digest}+{refiner_details.digest}")


def check_additions(paths: ModelPaths, spec: Spec) -> None:
    """Raise `BadInput` for a LoRA, a ControlNet or an IP-Adapter that was made for another kind of model than
    the spec's, for GGUF that is to be quantized again, and for an enlarger that is none."""
    network = original_file(paths.model, "transformer")
    if spec.quantize != NO_QUANTIZATION and network is not None and is_gguf(network):
        raise BadInput(
            "quantize", spec.quantize, "does not go with GGUF, which is quantized already; leave it out"
        )
    check_loras(paths, spec.lora)
    check_embeddings(paths, spec.embedding)
    check_controlnets(paths.model, spec.control, spec.controlnet)
    if spec.ip_adapter is not None:
        check_ip_adapter(paths.model, spec.ip_adapter)
    if spec.enlarger is not None:
        # Only here: it imports torch.
        from render.models.enlarger import check_enlarger

        check_enlarger(spec.enlarger)


def check_loras(paths: ModelPaths, loras: Sequence[Lora]) -> None:
    """Raise `BadInput` for a LoRA that was trained for another kind of model; reads its header alone."""
    width = text_width(paths.model) if loras else None
    for lora in loras:
        if width is not None and lora.text_width not in (None, width):
            raise BadInput(
                "lora",
                lora.path,
                f"was trained for a model with text states of {lora.text_width}, and this one has "
                f"{width}; use a LoRA made for it",
            )


def check_embeddings(paths: ModelPaths, embeddings: Sequence[Embedding]) -> None:
    """Raise `BadInput` for a learned word that does not fit the model's text encoders, by its header."""
    if not embeddings:
        return
    if family_of(paths.model).name not in ("sd", "sdxl"):
        fix = "goes with models of Stable Diffusion 1, 2 and XL; leave it out"
        raise BadInput("embedding", embeddings[0].path, fix)
    index = read_json(paths.model, "model_index.json")
    parts = [
        part for part in ("text_encoder", "text_encoder_2") if (index.get(part) or [None])[0] is not None
    ]
    for embedding in embeddings:
        for part in parts:
            name, width = embedding.tensor_for(part), read_config(paths.model, part).get("hidden_size")
            if name is None:
                fix = f"has no vectors for the model's {part}; use one made for it"
                raise BadInput("embedding", embedding.path, fix)
            if embedding.widths[name] != width:
                fix = (
                    f"has vectors of {embedding.widths[name]} for {part}, and the model's are of {width}; "
                    "use one made for it"
                )
                raise BadInput("embedding", embedding.path, fix)


def check_ip_adapter(model: Path, adapter: IpAdapter) -> None:
    """Raise `BadInput` for an IP-Adapter that was made for another kind of model, by its header."""
    family, width = family_of(model).name, text_width(model)
    if family not in ("sd", "sdxl"):
        fix = f"goes with models of Stable Diffusion 1, 2 and XL, and this one is of {family}; leave it out"
        raise BadInput("ip_adapter", adapter.path, fix)
    if width is not None and adapter.text_width != width:
        fix = f"was trained for text states of {adapter.text_width}, and this model has {width}"
        raise BadInput("ip_adapter", adapter.path, f"{fix}; use one made for it")


def refiner_info(path: Path) -> ModelInfo:
    """A refiner's info; raises `ModelNotUsable` with the field `refiner`."""
    try:
        return read_refiner_info(path)
    except ModelNotUsable as exc:
        raise ModelNotUsable("refiner", exc.value, exc.fix) from exc


def _with_field(exc: ModelNotUsable, model: str, refiner: str) -> ModelNotUsable:
    return ModelNotUsable("refiner", exc.value, exc.fix) if exc.value == refiner != model else exc


def _check_pair(model: Path, info: ModelInfo, refiner: Path, refiner_info: ModelInfo) -> None:
    def mismatch(what: str) -> ModelNotUsable:
        return ModelNotUsable("refiner", str(refiner), f"{what}; use a refiner made for {model}")

    if (refiner_info.latent_channels, refiner_info.scale_factor) != (info.latent_channels, info.scale_factor):
        raise mismatch(
            f"has {refiner_info.latent_channels} latent channels of {refiner_info.scale_factor} px, "
            f"the model {info.latent_channels} of {info.scale_factor} px"
        )
    if refiner_info.takes_guidance != info.takes_guidance:
        raise mismatch("takes guidance in another way than the model")
    model_training, refiner_training = (_training(path) for path in (model, refiner))
    for name in _TRAINING:
        if model_training[name] != refiner_training[name]:
            raise mismatch(
                f"was trained with {name} {refiner_training[name]!r}, the model with {model_training[name]!r}"
            )


def _training(path: Path) -> dict[str, Any]:
    config = read_config(path, "scheduler")
    return {name: config.get(name, default) for name, default in _TRAINING.items()}
