"""A model's folder, read without torch: where it is, whether we can use it, and what the plan must know.

Only safetensors are ever read. A pickle can run any code when it is opened, so a folder that holds one
without safetensors beside it is refused, and one that has both is read from the safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from render.errors import ModelNotUsable
from render.model_info import ModelInfo
from render.models.hub import download, looks_like_hub_id
from render.models.registry import FAMILIES, REFINERS, UNUSED_PARTS, Family

BUILTIN = "builtin"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ZOOM_LIMIT_KEY = "_max_zoom"
"""In `model_index.json`: the largest zoom (in native sizes) that the model was trained on. diffusers
ignores keys with a leading underscore, so the folder still loads in a stock pipeline."""
GUIDANCE_KEY = "_guidance_scale"
"""Beside it: the guidance scale that suits the model best, where that is not its family's."""
AESTHETICS_KEY = "requires_aesthetics_score"
"""In a refiner's `model_index.json`: its network is told how pleasing the picture is to be."""
KL_HALO = 18
"""Latents around a decode tile of an `AutoencoderKL`. The convolutions of its four levels reach 18 latents;
its group norms and its one attention see the whole tile, so a tiled decode is close, never exact."""
LISTENER = "listener"
"""The part with a trained cross attention, in models that bring one (`render.models.trained_cross_window_attention`). No stock
pipeline knows it, so `model_index.json` does not name it."""
_ATTENDING_MIDDLE = "UNetMidBlock2DCrossAttn"

_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?\.safetensors")
_COUNTED_ENDINGS = (".json", ".txt", ".model")
Listing = tuple[tuple[str, int, int, int], ...]


def resolve_model(name: str) -> Path:
    """`builtin`, a local folder, or a hub id (from the local cache, else the network) -> a folder.

    Raises `ModelNotUsable` when there is none. Whether it can be used is for `read_model_info` to say.
    """
    if name == BUILTIN:
        return _builtin_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if looks_like_hub_id(name):
        return download(name, _is_whole)
    raise ModelNotUsable("model", name, "is not a folder here; use builtin, a folder or a hub id")


def read_model_info(path: Path) -> ModelInfo:
    """What the plan needs of a model, from its configuration files and the hashes of its weights.

    Raises `ModelNotUsable` for a folder that lacks parts, holds pickles, or is of a family without adapter.
    A process reads a folder again only when a file in it has come, gone or changed.
    """
    return _read_facts(path, _listing(path))


def read_refiner_info(path: Path) -> ModelInfo:
    """The same of a refiner: a model that finishes what another has begun.

    Raises `ModelNotUsable` for a folder that cannot be used, or that holds no refiner.
    """
    return _read_refiner_facts(path, _listing(path))


# `listing` is looked at by the caches alone. Refusals are not kept: they are looked at anew each time.
@lru_cache(maxsize=32)
def _read_facts(path: Path, listing: Listing) -> ModelInfo:
    return _facts(path, *_inspect(path))


@lru_cache(maxsize=32)
def _read_refiner_facts(path: Path, listing: Listing) -> ModelInfo:
    index, family, parts = _inspect(path, REFINERS)
    if not index.get(AESTHETICS_KEY):
        raise _unusable(path, f"has no {AESTHETICS_KEY} in model_index.json and is no refiner; use another")
    return _facts(path, index, family, parts)


def read_config(path: Path, part: str) -> dict[str, Any]:
    """A part's configuration file; raises `ModelNotUsable` when it cannot be read."""
    return _read_json(path, f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json")


def _facts(path: Path, index: dict[str, Any], family: Family, parts: tuple[str, ...]) -> ModelInfo:
    unet, vae = _read_json(path, "unet/config.json"), _read_json(path, "vae/config.json")
    scale_factor, halo = _decoder_geometry(path, index["vae"][1], vae)
    channels = _whole(path, vae, "vae", "latent_channels", 4)
    taken = _whole(path, unet, "unet", "in_channels", 4)
    if taken != channels:
        raise _unusable(path, f"has a unet of {taken} channels on {channels}; use a text-to-image model")
    return ModelInfo(
        family=family.name,
        latent_channels=channels,
        scale_factor=scale_factor,
        native_size=_sample_size(path, unet) * scale_factor,
        digest=_digest(path, parts),
        decode_halo=halo,
        guidance_scale=_number(path, index, GUIDANCE_KEY, 0.0, family.guidance_scale),
        takes_guidance=unet.get("time_cond_proj_dim") is not None,
        zoom_limit=_number(path, index, ZOOM_LIMIT_KEY, 1.0, None),
        token_width=_token_width(unet),
        has_cross_window_attention=LISTENER in parts,
    )


def family_of(path: Path) -> Family:
    """The family of a folder that can be used, refiners too; raises `ModelNotUsable` for any other. Hashes
    nothing."""
    return _inspect(path, FAMILIES | REFINERS)[1]


def networks_of(path: Path) -> dict[str, tuple[str, str]]:
    """The parts of a folder that have weights: name -> (library, class), checked against the family's."""
    index, _, parts = _inspect(path, FAMILIES | REFINERS)
    return {part: (index[part][0], index[part][1]) for part in parts if _is_network(part)}


def tiny_decoder_halo(blocks: tuple[int, ...], smooth: bool = False) -> int:
    """How many latents beside its own an `AutoencoderTiny`'s pixel depends on, in each direction.

    Walks the decoder back from the leftmost pixel of a latent: each 3x3 convolution reaches one further
    (three to a block), each doubling halves the distance, rounded outwards (`smooth`: an interpolating
    doubling reads one more neighbour). It has no norms and no attention, so the reach is finite and exact.
    """
    reach = 1 + 3 * blocks[-1]
    for count in reversed(blocks[:-1]):
        reach = -(-(reach + 1) // 2) + (1 if smooth else 0)
        reach += 3 * count
    return reach + 1


def _builtin_folder() -> Path:
    try:
        from render.builtin import WEIGHTS
    except ImportError as exc:
        raise ModelNotUsable("model", BUILTIN, "is not in this installation; install it again") from exc
    folder = Path(WEIGHTS)
    if not folder.is_dir():
        raise ModelNotUsable("model", BUILTIN, "has no weights in this installation; install it again")
    return folder


def _listing(path: Path) -> Listing:
    """Every file below a folder with its size and its times, in nanoseconds; a link's are its target's."""
    found = []
    for file in sorted(path.rglob("*")):
        with contextlib.suppress(OSError):
            stat = file.stat()
            found.append((str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)


def _is_whole(path: Path) -> bool:
    try:
        _inspect(path, FAMILIES | REFINERS)
    except ModelNotUsable:
        return False
    return True


def _inspect(
    path: Path, families: Mapping[str, Family] = FAMILIES
) -> tuple[dict[str, Any], Family, tuple[str, ...]]:
    """The index, the family and the parts in use of a folder; raises `ModelNotUsable`."""
    if not path.is_dir():
        raise _unusable(path, "is not a folder; check the path")
    index = _read_json(path, "model_index.json")
    family = _family(path, index, families)
    _refuse_pickles(path)
    parts = tuple(part for part in family.parts if _check_part(path, index, family, part))
    for name, entry in index.items():
        foreign = isinstance(entry, list) and name not in (*family.parts, *UNUSED_PARTS)
        if foreign and not name.startswith("_") and any(entry):
            raise _unusable(path, f"has a part {name!r} that {family.name} does not know; use a stock folder")
    if (path / LISTENER).is_dir():
        _check_files(path, LISTENER)
        parts = (*parts, LISTENER)
    return index, family, parts


def _family(path: Path, index: dict[str, Any], families: Mapping[str, Family]) -> Family:
    name = index.get("_class_name")
    if isinstance(name, str) and name in families:
        return families[name]
    if name in REFINERS:
        raise _unusable(path, "is a refiner; name it as the refiner, beside a model that begins")
    if families is REFINERS:
        raise _unusable(path, f"is a {name!r} and no refiner; use a {' or '.join(REFINERS)}")
    raise _unusable(path, f"is a {name!r}, which has no adapter; use a {' or '.join(FAMILIES)}")


def _refuse_pickles(path: Path) -> None:
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() not in PICKLES or not file.is_file():
            continue
        if not any(file.parent.glob("*.safetensors")):
            name = file.relative_to(path).as_posix()
            raise _unusable(path, f"holds the pickle {name} and no safetensors beside it; convert it first")


def _check_part(path: Path, index: dict[str, Any], family: Family, part: str) -> bool:
    """Whether a part is in use; raises `ModelNotUsable` when it is needed and not there."""
    entry = index.get(part)
    if part in family.optional and (entry is None or entry == [None, None]):
        return False
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
        raise _unusable(path, f"names no {part} in model_index.json; download the model again")
    library, class_name = entry
    allowed = family.parts[part]
    if library not in ("diffusers", "transformers") or (allowed and class_name not in allowed):
        wanted = " or ".join(allowed) or "one of diffusers' own"
        raise _unusable(path, f"has the {part} {library}.{class_name}; it must be {wanted}")
    _check_files(path, part)
    return True


def _is_network(part: str) -> bool:
    return part not in ("scheduler", LISTENER) and not part.startswith("tokenizer")


def _check_files(path: Path, part: str) -> None:
    folder = path / part
    if part == "scheduler":
        wanted, found = "scheduler_config.json", (folder / "scheduler_config.json").is_file()
    elif part.startswith("tokenizer"):
        wanted = "tokenizer.json or vocab.json"
        found = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    elif not (folder / "config.json").is_file():
        wanted, found = "config.json", False
    else:
        wanted, found = "a whole set of safetensors", _has_all_weights(folder)
    if not found:
        raise _unusable(path, f"lacks {part}/ with {wanted}; download the model again")


def _weights(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.safetensors") if _WEIGHTS.fullmatch(file.name))


def _has_all_weights(folder: Path) -> bool:
    names = {file.name for file in _weights(folder)}
    if any("-of-" not in name for name in names):
        return True
    return any(len(names) == int(name.rsplit("-of-")[1][:5]) for name in names)


def _decoder_geometry(path: Path, class_name: str, vae: dict[str, Any]) -> tuple[int, int]:
    """(pixels per latent, decode halo in latents)"""
    if class_name == "AutoencoderTiny":
        blocks = tuple(vae.get("num_decoder_blocks", (3, 3, 3, 1)))
        factor = _whole(path, vae, "vae", "upsampling_scaling_factor", 2)
        smooth = vae.get("upsample_fn", "nearest") != "nearest"
        if factor != 2 or not blocks or not all(isinstance(count, int) for count in blocks):
            raise _unusable(path, "has a vae whose decoder does not double at each level; use another model")
        return 2 ** (len(blocks) - 1), tiny_decoder_halo(blocks, smooth)
    levels = vae.get("block_out_channels")
    if not isinstance(levels, list) or not levels:
        raise _unusable(path, "has no block_out_channels in vae/config.json; download the model again")
    return 2 ** (len(levels) - 1), KL_HALO


def _sample_size(path: Path, unet: dict[str, Any]) -> int:
    size = unet.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise _unusable(path, f"has sample_size {size!r} in unet/config.json; it must be one whole number")
    return size


@overload
def _number(path: Path, index: dict[str, Any], key: str, least: float, default: float) -> float: ...
@overload
def _number(path: Path, index: dict[str, Any], key: str, least: float, default: None) -> float | None: ...
def _number(path: Path, index: dict[str, Any], key: str, least: float, default: float | None) -> float | None:
    """A number that a model says of itself in `model_index.json`."""
    value = index.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise _unusable(path, f"has {key} {value!r} in model_index.json; it must be at least {least:g}")
    return float(value)


def _token_width(unet: dict[str, Any]) -> int:
    """See `render.models.cross_window_attention`: the channels of the UNet's middle, where that attends to itself."""
    channels = unet.get("block_out_channels", (320, 640, 1280, 1280))
    attends = unet.get("mid_block_type", _ATTENDING_MIDDLE) == _ATTENDING_MIDDLE
    return int(channels[-1]) if attends and not unet.get("mid_block_only_cross_attention") else 0


def _whole(path: Path, config: dict[str, Any], part: str, key: str, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _unusable(path, f"has {key} {value!r} in {part}/config.json; it must be a whole number")
    return value


def _digest(path: Path, parts: tuple[str, ...]) -> str:
    """SHA-256 over the sorted names and SHA-256s of every file that decides a pixel."""
    files = [path / "model_index.json"]
    for part in parts:
        files += [file for file in (path / part).iterdir() if file.name.endswith(_COUNTED_ENDINGS)]
        files += _weights(path / part)
    lines = sorted((file.relative_to(path).as_posix(), _file_sha256(file)) for file in files)
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _file_sha256(file: Path) -> str:
    stat = file.stat()
    return _hash_once(str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=1024)
def _hash_once(name: str, size: int, mtime_ns: int, ctime_ns: int) -> str:
    # Size and times are in the key so that a changed file is hashed again within one process.
    with open(name, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        document = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise _unusable(path, f"lacks {name}; use a folder in diffusers' format") from exc
    except (OSError, ValueError) as exc:
        raise _unusable(path, f"has an unreadable {name}; download the model again") from exc
    if not isinstance(document, dict):
        raise _unusable(path, f"has a {name} that is no JSON object; download the model again")
    return document


def _unusable(path: Path, fix: str) -> ModelNotUsable:
    return ModelNotUsable("model", str(path), fix)
