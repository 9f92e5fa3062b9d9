"""A folder with an autoencoder alone, which replaces that of the model (`--vae`). No torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from render.errors import ModelNotUsable
from render.model_info import ModelInfo
from render.models.autoencoders.geometry import AutoencoderGeometry, autoencoder_geometry
from render.models.config_files import read_json
from render.models.stored_formats import check_formats
from render.models.weights import check_pointers, check_weights, part_digest, refuse_pickles
from render.spec.files import home_path


@dataclass(frozen=True, kw_only=True)
class VaeInfo:
    """An autoencoder's class, geometry and digest."""

    class_name: str
    geometry: AutoencoderGeometry
    digest: str
    """SHA-256 over its files; their folder's name plays no part."""


def resolve_vae(name: str) -> Path:
    """The folder that holds the autoencoder's `config.json`: the named one, or `vae` in a whole model's.

    Raises `ModelNotUsable` when there is none on this machine.
    """
    folder = home_path(name)
    try:
        for found in (folder, folder / "vae"):
            if (found / "config.json").is_file():
                return found
    except OSError as exc:
        raise ModelNotUsable("vae", name[:200], f"cannot be read ({exc.strerror}); check the path") from exc
    fix = "is no folder with the config.json of an autoencoder on this machine; give the path of one"
    raise ModelNotUsable("vae", name, fix)


def read_vae_info(path: Path) -> VaeInfo:
    """Raises `ModelNotUsable` for a folder that cannot be used."""
    try:
        config: dict[str, Any] = read_json(path, "config.json")
        geometry = autoencoder_geometry(path, str(config.get("_class_name")), config)
        refuse_pickles(path)
        check_pointers(path.parent, path.name)
        check_weights(path.parent, path.name)
        check_formats(path.parent, path.name)
    except ModelNotUsable as exc:
        raise ModelNotUsable("vae", exc.value, exc.fix) from exc
    return VaeInfo(class_name=str(config["_class_name"]), geometry=geometry, digest=part_digest(path))


def with_vae(info: ModelInfo, vae: VaeInfo, name: str) -> ModelInfo:
    """A model's info with its autoencoder replaced; its digest stands for both.

    Raises `ModelNotUsable` for an autoencoder of other latents than the model's.
    """
    geometry = vae.geometry
    if (geometry.latent_channels, geometry.scale_factor) != (info.latent_channels, info.scale_factor):
        raise ModelNotUsable(
            "vae",
            name,
            f"has {geometry.latent_channels} latent channels of {geometry.scale_factor} px, the model "
            f"{info.latent_channels} of {info.scale_factor} px; use an autoencoder made for the model",
        )
    return replace(
        info,
        digest=hashlib.sha256(f"{info.digest} vae {vae.digest}".encode()).hexdigest(),
        decode_halo=geometry.decode_halo,
        layered_autoencoder=geometry.layered,
        attention_scale=geometry.attention_scale,
    )
