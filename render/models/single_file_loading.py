"""Loads single files by diffusers' own loaders: whole ones with the configuration that the package carries,
and those that a folder completes (`render.models.base_folder`) part by part."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    create_diffusers_clip_model_from_ldm,
    create_diffusers_t5_model_from_checkpoint,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from render.errors import ModelNotUsable
from render.gguf_file import is_gguf
from render.models.clip_vocabulary import byte_pairs
from render.models.original_layouts import NETWORK_PREFIX, VAE_PREFIXES, OriginalNetwork, original_network
from render.models.scaled_weights import unscaled
from render.models.single_file import Layout, layout_of
from render.safetensors_file import read_header

_TOKENS = 77
_LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}


def load_components(path: Path, dtype: torch.dtype, unused: dict[str, Any]) -> dict[str, Any]:
    """The components of a stock pipeline from a single file, but for those in `unused`.

    The tensors are mapped from the file where the number format is the file's own.
    Raises `ModelNotUsable` for a file that lacks a weight, and errors of the libraries.
    """
    layout, checkpoint = layout_of(path), unscaled(load_file(path), dtype)
    index, network = layout["model_index.json"], original_network(read_header(path))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="chorale-layout-") as name:
        _write(Path(name), layout)
        for part, entry in index.items():
            if not isinstance(entry, list) or part in unused:
                continue
            if part == "scheduler":
                scheduler = getattr(diffusers, entry[1])
                found[part] = scheduler.from_config(layout["scheduler/scheduler_config.json"])
            elif part.startswith("tokenizer"):
                found[part] = clip_tokenizer(layout[f"{part}/pad"])
            else:
                own = checkpoint if part == "unet" or network is None else _part_of(checkpoint, network, part)
                found[part] = _convert(path, own, Path(name), part, (entry[0], entry[1]), dtype)
    options = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
    return found | {option: index[option] for option in options if option in index}


def load_part(folder: Path, file: Path, part: str, kind: tuple[str, str], dtype: torch.dtype) -> nn.Module:
    """One part's network, of (library, class) `kind`: weights from a file, configuration from a folder.

    Raises `ModelNotUsable` for a file that lacks a weight, and errors of the libraries.
    """
    if is_gguf(file):
        return _load_gguf(folder, file, part, kind[1], dtype)
    network = original_network(read_header(file))
    assert network is not None, "the folder would not have been joined"
    needed = _part_of(load_file(file), network, part)
    return _convert(file, unscaled(needed, dtype), folder, part, kind, dtype)


def _part_of(checkpoint: dict[str, Tensor], network: OriginalNetwork, part: str) -> dict[str, Tensor]:
    """The tensors of one part alone: the loaders of text encoders take any that fits."""
    starts: dict[str, tuple[str, ...]] = {"vae": VAE_PREFIXES, network.layout.part: (network.prefix,)}
    starts |= network.layout.texts
    return {name: value for name, value in checkpoint.items() if name.startswith(starts[part])}


def _load_gguf(folder: Path, file: Path, part: str, class_name: str, dtype: torch.dtype) -> nn.Module:
    """A network whose linear layers keep their weights in the file's blocks and compute in `dtype`."""
    network: nn.Module = getattr(diffusers, class_name).from_single_file(
        str(file),
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
        subfolder=part,
        config=str(folder),
        torch_dtype=dtype,
        local_files_only=True,
    )
    _check_whole(file, part, network)
    return network


def _convert(
    file: Path,
    checkpoint: dict[str, Tensor],
    folder: Path,
    part: str,
    kind: tuple[str, str],
    dtype: torch.dtype,
) -> nn.Module:
    library, class_name = kind
    made = getattr(_LIBRARIES[library], class_name)
    options = {"subfolder": part, "config": str(folder), "torch_dtype": dtype, "local_files_only": True}
    network: Any
    if class_name.startswith("CLIP"):
        network = create_diffusers_clip_model_from_ldm(made, dict(checkpoint), **options)
    elif library == "transformers":
        network = create_diffusers_t5_model_from_checkpoint(made, dict(checkpoint), **options)
        network.tie_weights()
    else:
        own = dict(checkpoint) if part == "vae" else _network(checkpoint)
        if part == "unet":  # whose loader wants the prefix
            own = {f"{NETWORK_PREFIX}{name}": value for name, value in own.items()}
        try:
            network = made.from_single_file(own, **options)
        except NotImplementedError as exc:  # of weights that are there by name alone
            raise ModelNotUsable("model", str(file), f"lacks weights of {part}; download it again") from exc
    _check_whole(file, part, network)
    return network


def _network(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors alone, without prefix: a loader may take any other for one of its own."""
    prefix = NETWORK_PREFIX if any(name.startswith(NETWORK_PREFIX) for name in checkpoint) else ""
    return {name.removeprefix(prefix): value for name, value in checkpoint.items() if name.startswith(prefix)}


def _write(folder: Path, layout: Layout) -> None:
    for name, document in layout.items():
        if name.endswith(".json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(document), encoding="utf-8")


def _check_whole(path: Path, part: str, network: nn.Module) -> None:
    missing = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if missing:
        fix = f"lacks {len(missing)} weights of {part}, {missing[0]} for one; download it again"
        raise ModelNotUsable("model", str(path), fix)
    network.eval().requires_grad_(False)


def clip_tokenizer(pad_token: str) -> Any:
    """CLIP's tokenizer, of which all Stable Diffusion models differ in nothing but the padding."""
    vocabulary, merges = byte_pairs()
    return transformers.CLIPTokenizer(
        vocab=dict(vocabulary), merges=list(merges), model_max_length=_TOKENS, pad_token=pad_token
    )
