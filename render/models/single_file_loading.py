"""Loads a single file by diffusers' own loaders with the configuration that the package carries."""

from __future__ import annotations

import gzip
import json
import tempfile
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors.torch import load_file
from torch import nn

from render.errors import ModelNotUsable
from render.models.scaled_weights import unscaled
from render.models.single_file import Layout, layout_of

_TOKENS = 77


def load_components(path: Path, dtype: torch.dtype, unused: dict[str, Any]) -> dict[str, Any]:
    """The components of a stock pipeline from a single file, but for those in `unused`.

    The tensors are mapped from the file where the number format is the file's own.
    Raises `ModelNotUsable` for a file that lacks a weight, and errors of the libraries.
    """
    layout, checkpoint = layout_of(path), unscaled(load_file(path), dtype)
    index = layout["model_index.json"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="chorale-layout-") as name:
        _write(Path(name), layout)
        for part, entry in index.items():
            if not isinstance(entry, list) or part in unused:
                continue
            library, class_name = entry
            made = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
            if part == "scheduler":
                found[part] = made.from_config(layout["scheduler/scheduler_config.json"])
            elif part.startswith("tokenizer"):
                found[part] = clip_tokenizer(layout[f"{part}/pad"])
            elif library == "transformers":
                found[part] = create_diffusers_clip_model_from_ldm(
                    made,
                    dict(checkpoint),
                    subfolder=part,
                    config=name,
                    torch_dtype=dtype,
                    local_files_only=True,
                )
            else:
                found[part] = made.from_single_file(
                    dict(checkpoint), config=name, subfolder=part, torch_dtype=dtype, local_files_only=True
                )
            if isinstance(found[part], nn.Module):
                _check_whole(path, part, found[part])
    options = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
    return found | {option: index[option] for option in options if option in index}


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
    vocabulary, merges = _byte_pairs()
    return transformers.CLIPTokenizer(
        vocab=dict(vocabulary), merges=list(merges), model_max_length=_TOKENS, pad_token=pad_token
    )


@lru_cache(maxsize=1)
def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary and merges (openai/CLIP, MIT), in the order that gives its token numbers."""
    data = (resources.files("render.models") / "clip_merges.txt.gz").read_bytes()
    merges = [
        (left, right) for left, right in (line.split() for line in gzip.decompress(data).decode().split("\n"))
    ]
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in printable] + [
        chr(0x100 + number) for number in range(256 - len(printable))
    ]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}, merges
