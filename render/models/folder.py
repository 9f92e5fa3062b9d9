"""A model folder, read without torch: where it is, whether it can be used, and its `ModelInfo` for the plan.

A folder has diffusers' layout: a `model_index.json` and one subfolder for each part of the pipeline.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from render.errors import ModelNotUsable
from render.gguf_file import SUFFIX
from render.model_info import ModelInfo
from render.models.autoencoders.geometry import autoencoder_geometry
from render.models.base_folder import original_file
from render.models.config_files import number, read_config, read_json, unusable, whole_number
from render.models.hub import download, looks_like_hub_id
from render.models.known_names import are_names_known, known_path
from render.models.packaged import packaged_folder
from render.models.registry import BASES, FAMILIES, REFINERS, UNUSED_PARTS, Family, GuidanceRule
from render.models.single_file import single_file_digest
from render.models.stored_formats import check_formats
from render.models.weights import (
    check_pointers,
    check_weights,
    files_of,
    refuse_pickles,
    weights_digest,
)
from render.sampling.scheduler_config import TrainedNoise, check_same_noise, trained_noise
from render.spec.files import PICKLES

ZOOM_LIMIT_KEY = "_max_zoom"
"""In `model_index.json`: the largest zoom (in native sizes) that the model was trained on. diffusers
ignores keys with a leading underscore, so the folder still loads in a stock pipeline."""
GUIDANCE_KEY = "_guidance_scale"
"""In the same file: the model's default guidance scale, where it is not that of its family."""
NATIVE_KEY = "_native_size"
"""In the same file: the side in pixels of the images that it was trained on, if not that of its family."""
AESTHETICS_KEY = "requires_aesthetics_score"
"""In a refiner's `model_index.json`: its network takes an aesthetic score."""
TRAINED_ATTENTION, OLD_TRAINED_ATTENTION = "cross_window_attention", "listener"
"""The part with trained cross-window attention, in models that have one
(`render.models.trained_cross_window_attention`). Stock pipelines ignore it, so `model_index.json` does not
list it. Models of version 0.1 have it in a folder `listener`. Their digests cover that name, so both names
are read."""
_TRAINED_ATTENTIONS = (TRAINED_ATTENTION, OLD_TRAINED_ATTENTION)
LIBRARIES = {
    "diffusers": "diffusers",
    "transformers": "transformers",
    "kolors": "diffusers.pipelines.kolors",
}
"""The modules that the libraries of `model_index.json` name."""
_TEXT_PARTS = ("tokenizer", "processor")
"""How the names of parts begin that hold a tokenizer."""
SENTENCEPIECE = "spiece.model"
"""T5's vocabulary as it was published; its tokenizer is made from it where there is no `tokenizer.json`."""
_VOCABULARIES = {
    "ByT5Tokenizer": ("tokenizer_config.json",),  # its tokens are bytes
    "ChatGLMTokenizer": ("tokenizer.model",),
    "T5Tokenizer": ("tokenizer.json", SENTENCEPIECE),
    "T5TokenizerFast": ("tokenizer.json", SENTENCEPIECE),
}
"""The files that hold a tokenizer, any of these; of a class that is not here see `_VOCABULARY`."""
_VOCABULARY = ("tokenizer.json", "vocab.json")
_ATTENDING_MIDDLE = "UNetMidBlock2DCrossAttn"

Listing = tuple[tuple[str, int, int, int], ...]
"""(name, size, mtime, ctime) of every file of a folder."""


def resolve_model(name: str) -> Path:
    """A packaged model, a local folder or file, a name that a farm knows (`render.models.known_names`), or a
    hub id (from the local cache, else the network) -> its path.

    Raises `ModelNotUsable` when there is none. `read_model_info` checks whether it can be used.
    """
    if (packaged := packaged_folder(name)) is not None:
        return packaged
    if (found := local_path(name)) is not None:
        return found
    if (known := known_path(name)) is not None:
        return known
    if looks_like_hub_id(name):
        return download(name, _is_complete)
    if "://" in name:
        raise ModelNotUsable("model", name, _url_advice(name))
    others = ", or a name of chorale model list" if are_names_known() else ""
    fix = f"is not on this machine; use builtin, a folder, a .safetensors file or a hub id{others}"
    raise ModelNotUsable("model", name, fix)


def local_path(name: str) -> Path | None:
    """The folder, or the .safetensors, of that name on this machine; None if there is none.

    Raises `ModelNotUsable` for any other file.
    """
    folder = Path(name)
    try:
        with contextlib.suppress(RuntimeError):  # ~name of no user
            folder = folder.expanduser()
        if folder.is_dir():
            return folder
        if not folder.is_file():
            return None
    except OSError as exc:
        raise ModelNotUsable("model", name, f"cannot be read ({exc.strerror}); check the path") from exc
    if folder.suffix.lower() in PICKLES:
        fix = "is a pickle, which can run any code when it is opened; convert it to safetensors"
        raise ModelNotUsable("model", name, fix)
    if folder.suffix.lower() not in (".safetensors", SUFFIX):
        raise ModelNotUsable("model", name, "is a file; give a .safetensors or a folder in diffusers' format")
    return folder


def _url_advice(name: str) -> str:
    hub = re.match(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", name)
    if hub is not None:
        return f"is a URL; write {hub[1]}, the model's id on the hub"
    return "is a URL, which is not downloaded; download the model and give its path"


def read_model_info(path: Path) -> ModelInfo:
    """What the plan needs of a model, from its configuration files and the hashes of its weights.

    Raises `ModelNotUsable` for a folder that lacks parts, has pickles, or is of a family without adapter.
    A process reads a folder again only when a file in it was added, changed or removed.
    """
    return _read_model_info(path, _listing(path))


def model_files(path: Path) -> list[Path]:
    """The files that a model consists of, sorted: a single file, or those of a folder that affect pixels.

    Raises `ModelNotUsable` for a folder that cannot be used.
    """
    return [path] if path.is_file() else sorted(files_of(path, _inspect(path, FAMILIES | REFINERS)[2]))


def read_refiner_info(path: Path) -> ModelInfo:
    """The same for a refiner: a model that does the last steps after another model.

    Raises `ModelNotUsable` for a folder that cannot be used, or that is not a refiner.
    """
    return _read_refiner_info(path, _listing(path))


# `listing` is only part of the cache's key. Errors are not cached: such a folder is read again each time.
@lru_cache(maxsize=32)
def _read_model_info(path: Path, listing: Listing) -> ModelInfo:
    return _model_info(path, *_inspect(path))


@lru_cache(maxsize=32)
def _read_refiner_info(path: Path, listing: Listing) -> ModelInfo:
    index, family, parts = _inspect(path, REFINERS)
    if not index.get(AESTHETICS_KEY):
        raise unusable(path, f"has no {AESTHETICS_KEY} in model_index.json and is not a refiner; use another")
    return _model_info(path, index, family, parts)


def _model_info(path: Path, index: dict[str, Any], family: Family, parts: tuple[str, ...]) -> ModelInfo:
    network, vae = read_json(path, f"{family.network}/config.json"), read_json(path, "vae/config.json")
    autoencoder = autoencoder_geometry(path, index["vae"][1], vae)
    channels = autoencoder.latent_channels
    in_channels = whole_number(path, network, family.network, "in_channels", 4)
    takes_mask = in_channels == family.masked_channels(channels)
    if in_channels not in (channels, channels * family.patch**2) and not takes_mask:
        wrong = f"{family.network} of {in_channels} input channels for {channels}"
        raise unusable(path, f"has a {wrong}; use a text-to-image model")
    _check_output(path, family, network, channels)
    _check_needs(path, family, network)
    noise = _trained_noise(path, index, family)
    takes_guidance, default_guidance = _guidance(family, index, network)
    return ModelInfo(
        family=family.name,
        latent_channels=channels,
        scale_factor=autoencoder.scale_factor,
        native_size=_native_size(path, index, family, network, autoencoder.scale_factor),
        digest=single_file_digest(path) if path.is_file() else weights_digest(path, parts),
        decode_halo=autoencoder.decode_halo,
        layered_autoencoder=autoencoder.layered,
        attention_scale=autoencoder.attention_scale,
        guidance_scale=number(path, index, GUIDANCE_KEY, 0.0, default_guidance),
        takes_guidance=takes_guidance,
        zoom_limit=number(path, index, ZOOM_LIMIT_KEY, 1.0, None),
        token_width=_token_width(network) if family.network == "unet" else 0,
        has_cross_window_attention=any(part in _TRAINED_ATTENTIONS for part in parts),
        samplers=noise.samplers,
        most_steps=noise.most_steps,
        most_lcm_steps=noise.most_lcm_steps,
        patch=family.patch,
        guidance_offset=1.0 if family.guidance is GuidanceRule.CFG_ONE_MORE else 0.0,
        guided_above=0.0 if family.guidance is GuidanceRule.CFG_ONE_MORE else 1.0,
        longest_window=_longest_window(path, family, network, autoencoder.scale_factor),
        least_references=family.references[0],
        most_references=family.references[1],
        takes_mask=takes_mask,
    )


def _check_output(path: Path, family: Family, network: dict[str, Any], channels: int) -> None:
    """Raise `ModelNotUsable` for a network whose predictions are not latents of the autoencoder."""
    found = network.get("out_channels", 4 if family.network == "unet" else None)
    allowed = {None, channels, channels * family.patch**2}
    if family.learned_variance:
        allowed.add(2 * channels)
    if found not in allowed:
        wrong = f"{family.network} of {found!r} output channels for {channels}"
        raise unusable(path, f"has a {wrong}; use a text-to-image model with its own autoencoder")


def _check_needs(path: Path, family: Family, network: dict[str, Any]) -> None:
    for package in family.packages:
        if find_spec(package) is None:
            raise unusable(path, f"is a {family.name}, which needs a package; pip install {package}")
    for key, needed in family.needs.items():
        if (value := network.get(key, needed)) != needed:
            fix = f"has {key} {value!r} in {family.network}/config.json; use a model where it is {needed!r}"
            raise unusable(path, fix)


def _guidance(family: Family, index: dict[str, Any], network: dict[str, Any]) -> tuple[bool, float]:
    """Whether the guidance scale is an input of the adapter, and the scale where a spec does not say."""
    rule = family.guidance
    if rule is GuidanceRule.CFG and index.get("is_distilled"):
        return True, 1.0  # and ignored
    if rule is GuidanceRule.EMBEDDED_OR_CFG and not network.get("guidance_embeds"):
        return False, 1.0
    inside = rule not in (GuidanceRule.CFG, GuidanceRule.CFG_ONE_MORE)
    return inside or network.get("time_cond_proj_dim") is not None, family.guidance_scale


def _native_size(
    path: Path, index: dict[str, Any], family: Family, network: dict[str, Any], scale_factor: int
) -> int:
    """A whole number of tokens of the network, in pixels."""
    given = index.get(NATIVE_KEY)
    if given is None:
        given = family.native_size or _sample_size(path, family.network, network) * scale_factor
    unit = scale_factor * family.patch
    if isinstance(given, bool) or not isinstance(given, int) or given < unit or given % unit:
        raise unusable(
            path, f"has {NATIVE_KEY} {given!r} in model_index.json; it must be a multiple of {unit}"
        )
    return given


def _longest_window(path: Path, family: Family, network: dict[str, Any], scale_factor: int) -> int | None:
    if not family.table_of_positions:
        return None
    tokens = whole_number(path, network, family.network, "pos_embed_max_size", 96)
    return tokens * family.patch * scale_factor


def family_of(path: Path) -> Family:
    """The family of a folder that can be used, refiners included. Hashes nothing.

    Raises `ModelNotUsable` for any other folder.
    """
    return _inspect(path, FAMILIES | REFINERS)[1]


def networks_of(path: Path) -> dict[str, tuple[str, str]]:
    """The parts of a folder that have weights: name -> (library, class), checked against the family's."""
    index, _, parts = _inspect(path, FAMILIES | REFINERS)
    return {part: (index[part][0], index[part][1]) for part in parts if _is_network(part)}


def text_parts(path: Path) -> dict[str, tuple[str, str]]:
    """The text encoders of a model: part -> (library, class)."""
    return {part: kind for part, kind in networks_of(path).items() if is_text_part(part)}


def is_text_part(part: str) -> bool:
    """Whether a part of a model's folder is a text encoder."""
    return part.startswith("text_encoder")


def text_width(path: Path) -> int | None:
    """The width of the text states that a UNet attends to; None where its configuration does not tell."""
    if not path.is_file() and not (path / "unet/config.json").is_file():
        return None
    width = read_json(path, "unet/config.json").get("cross_attention_dim")
    return width if isinstance(width, int) else None


def absent_parts(path: Path) -> tuple[str, ...]:
    """The optional parts of its family that a folder does not have."""
    _, family, parts = _inspect(path, FAMILIES | REFINERS)
    return tuple(part for part in family.optional if part not in parts)


def _listing(path: Path) -> Listing:
    """Every file below a folder with its size and its times in nanoseconds; links are followed."""
    listing = []
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        with contextlib.suppress(OSError):
            stat = file.stat()
            listing.append((str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(listing)


def _trained_noise(path: Path, index: dict[str, Any], family: Family) -> TrainedNoise:
    own = read_config(path, "scheduler")
    config = own | {"_class_name": index["scheduler"][1]}
    try:
        check_same_noise(own, config["_class_name"])
        noise = trained_noise(config)
    except ValueError as exc:
        raise unusable(path, f"has a scheduler {exc}") from exc
    if noise.kind not in family.noise:
        name = config["_class_name"]
        raise unusable(path, f"has the scheduler {name}, which no {family.name} was trained for; use another")
    if config.get("use_dynamic_shifting") and not family.dynamic_shift:
        fix = f"has a scheduler with use_dynamic_shifting, which {family.name} does not have; set a shift"
        raise unusable(path, fix)
    return noise


def _is_complete(path: Path) -> bool:
    try:
        _inspect(path, FAMILIES | REFINERS)
    except ModelNotUsable:
        return False
    return True


def _inspect(
    path: Path, families: Mapping[str, Family] = FAMILIES
) -> tuple[dict[str, Any], Family, tuple[str, ...]]:
    """The index, the family and the parts in use of a folder; raises `ModelNotUsable`."""
    if path.is_file():
        index = read_json(path, "model_index.json")
        family = _family(path, index, families)
        return index, family, tuple(part for part in family.parts if part in index)
    if not path.is_dir():
        raise unusable(path, "is not a folder; check the path")
    index = read_json(path, "model_index.json")
    family = _family(path, index, families)
    refuse_pickles(path)
    parts = tuple(part for part in family.parts if _check_part(path, index, family, part))
    for name, entry in index.items():
        foreign = isinstance(entry, list) and name not in (*family.parts, *UNUSED_PARTS)
        if foreign and not name.startswith("_") and any(isinstance(value, str) for value in entry):
            raise unusable(
                path, f"has a part {name!r} that {family.name} does not support; use a stock folder"
            )
    attention = trained_attention_folder(path)
    if attention is not None:
        _check_files(path, attention.name)
        parts = (*parts, attention.name)
    return index, family, parts


def _family(path: Path, index: dict[str, Any], families: Mapping[str, Family]) -> Family:
    name = index.get("_class_name")
    if isinstance(name, list | dict):  # a list, where the repository brings a pipeline of its own
        raise unusable(path, f"is a {name!r}, whose code is not run; use a stock pipeline's folder")
    if families is not REFINERS and name in BASES and not index.get(AESTHETICS_KEY):
        name = BASES[name]
    if isinstance(name, str) and name in families:
        return families[name]
    if name in REFINERS:
        raise unusable(path, "is a refiner; give it as the refiner, beside a model")
    if families is REFINERS:
        raise unusable(path, f"is a {name!r} and not a refiner; use a {' or '.join(REFINERS)}")
    raise unusable(path, f"is a {name!r}, which has no adapter; use a {' or '.join(FAMILIES)}")


def _check_part(path: Path, index: dict[str, Any], family: Family, part: str) -> bool:
    """Whether a part is in use; raises `ModelNotUsable` when it is needed and missing."""
    entry = index.get(part)
    if part in family.optional and (entry is None or entry == [None, None]):
        return False
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry)):
        raise unusable(path, f"names no {part} in model_index.json; download the model again")
    library, class_name = entry
    allowed = family.parts[part]
    if library not in LIBRARIES or (allowed and class_name not in allowed):
        wanted = " or ".join(allowed) or "one of diffusers' own"
        raise unusable(path, f"has the {part} {library}.{class_name}; it must be {wanted}")
    _check_files(path, part, class_name)
    return True


def _is_network(part: str) -> bool:
    return part not in ("scheduler", *_TRAINED_ATTENTIONS) and not part.startswith(_TEXT_PARTS)


def trained_attention_folder(path: Path) -> Path | None:
    """The subfolder with trained cross-window attention; None if the model has none."""
    folders = (path / name for name in _TRAINED_ATTENTIONS)
    return next((folder for folder in folders if folder.is_dir()), None)


def _check_files(path: Path, part: str, class_name: str = "") -> None:
    folder = path / part
    if part == "scheduler":
        wanted, found = "scheduler_config.json", (folder / "scheduler_config.json").is_file()
    elif part.startswith(_TEXT_PARTS):
        names = _VOCABULARIES.get(class_name, _VOCABULARY)
        wanted, found = " or ".join(names), any((folder / name).is_file() for name in names)
    elif not (folder / "config.json").is_file():
        wanted, found = "config.json", False
    else:
        _check_plain(path, part)
        check_weights(path, part)
        if original_file(path, part) is None:  # of which `base_folder` has read the header
            check_formats(path, part)
        return
    check_pointers(path, part)
    if not found:
        raise unusable(path, f"lacks {part}/ with {wanted}; download the model again")
    alone = wanted.endswith(SENTENCEPIECE) and not (folder / "tokenizer.json").is_file()
    if alone and not (_is_installed("sentencepiece") and _is_installed("google.protobuf")):
        needed = "pip install 'chorale[sentencepiece]'"
        raise unusable(path, f"has {part}/{SENTENCEPIECE} alone, which needs packages; {needed}")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _check_plain(path: Path, part: str) -> None:
    """Raise `ModelNotUsable` for a part whose files are quantized already."""
    config = read_json(path, f"{part}/config.json").get("quantization_config")
    if config is not None:
        method = config.get("quant_method") if isinstance(config, dict) else None
        raise unusable(
            path,
            f"has the {part} quantized by {method or 'another program'}, which is not read; use the model as "
            "it was published, with --quantize",
        )


def _sample_size(path: Path, part: str, network: dict[str, Any]) -> int:
    size = network.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise unusable(path, f"has sample_size {size!r} in {part}/config.json; it must be one whole number")
    return size


def _token_width(unet: dict[str, Any]) -> int:
    """The channels of the UNet's middle block if that has self-attention
    (see `render.models.cross_window_attention`); else 0."""
    channels = unet.get("block_out_channels", (320, 640, 1280, 1280))
    attends = unet.get("mid_block_type", _ATTENDING_MIDDLE) == _ATTENDING_MIDDLE
    return int(channels[-1]) if attends and not unet.get("mid_block_only_cross_attention") else 0
