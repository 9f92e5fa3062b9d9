"""Single files: a whole Stable Diffusion 1, 2, XL or 3 checkpoint in one .safetensors. No torch.

Such a file has no configuration. The package carries those of the four kinds (`single_file_layouts.json`,
after the models' own repositories), and the file's header tells which one it is. A layout maps the names of a
model folder's JSON files to what would stand in them. Other files need a folder beside them
(`render.models.base_folder`).
"""

from __future__ import annotations

import copy
import hashlib
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from render.errors import ModelNotUsable
from render.gguf_file import GGUF_TYPES, is_gguf
from render.models.original_layouts import (
    ORIGINAL_LAYOUTS,
    SD3,
    VAE_PREFIXES,
    OriginalNetwork,
    original_network,
)
from render.models.registry import FAMILIES
from render.safetensors_file import file_problem, file_sha256, read_header, read_metadata

Layout = dict[str, Any]
UNET = "model.diffusion_model."
KINDS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""By the width of the text states that the UNet attends to."""
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Those of weights that can be read, as a header names them."""
_VAE = "first_stage_model.decoder.conv_in.weight"
_TEXTS = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
_SCHEDULER = "scheduler/scheduler_config.json"
UNKNOWN = (
    "is of a kind that is not read from a single file; use a network of "
    + ", ".join(layout.name for layout in ORIGINAL_LAYOUTS)
    + " under its trainers' names, or a folder in diffusers' format"
)
_BASE = "give its model's folder in diffusers' format as --base"


@lru_cache(maxsize=1)
def layouts() -> dict[str, Layout]:
    """The carried configurations by kind."""
    file = resources.files("render.models") / "single_file_layouts.json"
    document: dict[str, Layout] = json.loads(file.read_text(encoding="utf-8"))
    return document


def layout_of(file: Path) -> Layout:
    """The configuration of a single file, from its header.

    Raises `ModelNotUsable` for a file that is damaged, not a whole checkpoint, or of another kind.
    """
    if (damage := file_problem(file)) is not None:
        raise ModelNotUsable("model", str(file), f"is a file {damage}")
    stat = file.stat()
    return copy.deepcopy(_layout(file, stat.st_size, stat.st_mtime_ns))


def single_file_digest(file: Path) -> str:
    """SHA-256 over the file's and its layout's."""
    layout = json.dumps(layout_of(file), sort_keys=True)
    lines = [["layout", hashlib.sha256(layout.encode()).hexdigest()], ["weights", file_sha256(file)]]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


@lru_cache(maxsize=32)
def _layout(file: Path, size: int, mtime_ns: int) -> Layout:
    header, metadata = checked_header(file), read_metadata(file)

    def refused(fix: str) -> ModelNotUsable:
        return ModelNotUsable("model", str(file), fix)

    width = next(
        (
            tensor["shape"][1]
            for name, tensor in header.items()
            if name.startswith(UNET) and name.endswith("attn2.to_k.weight")
        ),
        None,
    )
    kind = KINDS.get(width) if width is not None else None
    if kind is None:
        network = original_network(header)
        if network is None:
            raise refused(UNKNOWN)
        return _sd3_layout(file, network, header)
    channels = header.get(f"{UNET}input_blocks.0.0.weight", {"shape": [0, 0]})["shape"][1]
    layout = copy.deepcopy(layouts()[kind])
    unet = layout["unet/config.json"]
    family = FAMILIES[layout["model_index.json"]["_class_name"]]
    if channels == family.masked_channels(unet["in_channels"]):
        # An inpainting model: latents, a mask, and what is kept. That of Stable Diffusion 2 was trained from
        # its base of 512 pixels, which predicts the noise.
        unet["in_channels"] = channels
        if kind == "sd2":
            _set_base(layout[_SCHEDULER], unet)
    if channels != unet["in_channels"]:
        raise refused(f"has a unet of {channels} input channels; use a text-to-image model")
    needed = {"autoencoder": (_VAE,), "text encoder": _TEXTS.get(kind, ())}
    for part, beginnings in needed.items():
        for beginning in beginnings:
            if not any(name.startswith(beginning) for name in header):
                raise refused(f"lacks its {part}; use a whole checkpoint, or {_BASE}")
    set_prediction(layout[_SCHEDULER], layout["unet/config.json"], header, metadata)
    return layout


def checked_header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of a file that may hold a model; raises `ModelNotUsable` for any other."""
    if (damage := file_problem(file)) is not None:
        raise ModelNotUsable("model", str(file), f"is a file {damage}")
    header = read_header(file)
    if any("lora" in name for name in header):
        raise ModelNotUsable("model", str(file), "is a LoRA; give it as --lora, beside a model")
    dtypes = GGUF_TYPES if is_gguf(file) else _DTYPES
    for name, tensor in header.items():
        if name.endswith(".weight") and tensor["dtype"] not in dtypes:
            fix = (
                f"has weights in {tensor['dtype']}, which are not read; use one in float8 or a half, "
                "with --quantize where memory is short"
            )
            raise ModelNotUsable("model", str(file), fix)
    return header


def _sd3_layout(file: Path, network: OriginalNetwork, header: dict[str, Any]) -> Layout:
    """Of Stable Diffusion 3 without T5, whose tokenizer is not carried."""

    def refused(fix: str) -> ModelNotUsable:
        return ModelNotUsable("model", str(file), f"{fix}; {_BASE}")

    def has(starts: tuple[str, ...]) -> bool:
        return any(name.startswith(starts) for name in header)

    name = network.layout.name
    if network.layout is not SD3:
        raise refused(f"holds a {name} network, and neither its tokenizers nor its configuration")
    if has(SD3.texts["text_encoder_3"]):
        raise refused("holds a T5 text encoder, and not its tokenizer")
    needed = {"autoencoder": VAE_PREFIXES, "text encoders": SD3.texts["text_encoder"]}
    needed["second text encoder"] = SD3.texts["text_encoder_2"]
    for part, starts in needed.items():
        if not has(starts):
            raise refused(f"holds a {name} network, and lacks its {part}")
    layout = copy.deepcopy(layouts()["sd3"])
    config = layout["transformer/config.json"]
    try:
        put, _ = network.configuration(config)
    except (KeyError, ValueError) as exc:
        raise ModelNotUsable("model", str(file), f"lacks weights ({exc}); download it again") from exc
    config |= put
    return layout


def _set_base(scheduler: dict[str, Any], unet: dict[str, Any]) -> None:
    """The noise is predicted; by Stable Diffusion 2 that is its base, of 512 pixels."""
    scheduler["prediction_type"] = "epsilon"
    if unet.get("sample_size") == 96:
        unet["sample_size"] = 64


def set_prediction(
    scheduler: dict[str, Any], unet: dict[str, Any], header: dict[str, Any], metadata: dict[str, str]
) -> None:
    """What trainers write of the prediction: SAI's model spec in the metadata, or ComfyUI's empty tensors."""
    told = metadata.get("modelspec.prediction_type", "")
    if "v_pred" in header or told.startswith("v"):
        scheduler["prediction_type"] = "v_prediction"
    elif told == "epsilon":
        _set_base(scheduler, unet)
    if "ztsnr" in header:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
