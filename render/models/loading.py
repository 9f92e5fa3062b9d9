"""Loads diffusers' networks from a model folder: safetensors only, every weight from the folder."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from render.errors import ModelNotUsable
from render.gguf_file import is_gguf
from render.models.autoencoders import open_autoencoder
from render.models.base_folder import original_file
from render.models.config_files import unusable
from render.models.folder import LIBRARIES, absent_parts, networks_of, text_parts
from render.models.load_errors import load_errors
from render.models.quantization import is_quantized, quantize
from render.models.skeletons import put_skeletons, text_encoders_are_apart
from render.models.vae_folder import read_vae_info
from render.models.weights import loadable, weight_files
from render.safetensors_file import dtype_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HAS_ACCELERATE = importlib.util.find_spec("accelerate") is not None
"""With accelerate, diffusers loads weights in place (`low_cpu_mem_usage`); without it, that option
has to be off or diffusers warns."""


def load_pipeline(class_name: str, path: Path, device: torch.device, dtype: str, **parts: Any) -> Any:
    """A stock pipeline from a local folder: safetensors only, no code from it, no downloads.

    `parts` are given in place of the folder's; None for one that is not used. The adapter calls the networks;
    the pipeline's loop is not used. Raises `ModelNotUsable` when the folder
    does not load.
    """
    if apart := text_encoders_are_apart():
        parts |= dict.fromkeys(text_parts(path))
    with loading(path):
        pipeline = _pipeline(class_name, path, dtype, parts)
    pipeline.to(device)
    if apart:
        with loading(path):
            put_skeletons(pipeline, path)
    return pipeline


def _pipeline(class_name: str, path: Path, dtype: str, parts: dict[str, Any]) -> Any:
    if path.is_file():
        from render.models.single_file_loading import load_components

        components = load_components(path, DTYPES[dtype], parts)
        for network in components.values():
            if is_quantized(type(network).__name__) and isinstance(network, torch.nn.Module):
                quantize(network, DTYPES[dtype])
        absent = dict.fromkeys(absent_parts(path))
        return getattr(diffusers, class_name)(**(absent | components | parts))
    kinds = networks_of(path).items()
    networks = {part: load_network(path, part, kind, dtype) for part, kind in kinds if part not in parts}
    # Looked up here: the first access makes transformers warn of packages that are not installed.
    pipeline_class = getattr(diffusers, class_name)
    parts = parts | dict.fromkeys(absent_parts(path))
    return pipeline_class.from_pretrained(str(path), local_files_only=True, **networks, **parts)


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Quietly, and with what the libraries raise for a model as `ModelNotUsable`."""

    def refuse(reason: str) -> ModelNotUsable:
        return unusable(path, f"does not load ({reason}); download it again")

    with load_errors(refuse, None), quiet():
        yield


def replace_autoencoder(adapter: Any, path: Path, device: torch.device, dtype: str) -> None:
    """Give a loaded model the autoencoder of another folder; raises `ModelNotUsable` if it does not load."""
    kind = "diffusers", read_vae_info(path).class_name

    def refuse(reason: str) -> ModelNotUsable:
        return ModelNotUsable("vae", str(path), f"does not load ({reason}); download it again")

    try:
        with load_errors(refuse, None), quiet():
            network = load_network(path.parent, path.name, kind, dtype).to(device)
    except ModelNotUsable as exc:
        raise ModelNotUsable("vae", str(path), exc.fix) from exc
    if dtype == "float16" and network.config.get("force_upcast"):
        network.to(torch.float32)
    adapter.pipeline.register_modules(vae=network)
    adapter.autoencoder = open_autoencoder(network, device)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings: the problems that they report are checked here and raise errors."""
    libraries: tuple[Any, ...] = (diffusers, transformers)
    levels = [library.utils.logging.get_verbosity() for library in libraries]
    for library in libraries:
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.utils.logging.set_verbosity(level)


def load_network(path: Path, part: str, kind: tuple[str, str], dtype: str) -> Any:
    """One part's network, of (library, class) `kind`, in evaluation mode and with every weight from the file.

    For missing weights the libraries use random numbers and a warning, and each rank would render a
    different image.
    """
    library, class_name = kind
    options = {"low_cpu_mem_usage": _HAS_ACCELERATE} if library == "diffusers" else {}
    network_class = getattr(importlib.import_module(LIBRARIES[library]), class_name)
    single_file = original_file(path, part)

    def load(number_format: str) -> Any:
        if single_file is not None:
            from render.models.single_file_loading import load_part

            return load_part(path, single_file, part, kind, DTYPES[number_format])
        with loadable(path / part) as folder:
            network, report = network_class.from_pretrained(
                str(folder),
                dtype=DTYPES[number_format],
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
        _check_missing(path, part, report["missing_keys"])
        return network.eval()

    if not is_quantized(class_name):
        return load(dtype)
    if single_file is not None and is_gguf(single_file):
        fix = "is quantized already; leave --quantize out"
        raise ModelNotUsable("model", str(single_file), fix)
    # As the files have it, so that they are mapped: only one layer at a time is in memory as it was.
    stored = dtype_of(weight_files(path / part)) if dtype == "float32" else dtype
    network = load(stored)
    if stored != dtype and _has_own_buffers(network):
        network = load(dtype)
    quantize(network, DTYPES[dtype])
    return network


def _has_own_buffers(network: torch.nn.Module) -> bool:
    """Whether a network has computed tables, such as positions, that were rounded when it was made."""
    stored = network.state_dict().keys()
    return any(name not in stored and buffer.is_floating_point() for name, buffer in network.named_buffers())


def _check_missing(path: Path, part: str, keys: Iterable[str]) -> None:
    if missing := sorted(keys):
        raise ModelNotUsable(
            "model",
            str(path),
            f"lacks {len(missing)} weights of {part}, {missing[0]} for one; download it again",
        )
