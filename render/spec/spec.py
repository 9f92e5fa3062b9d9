"""The spec: everything that decides the pixels of an image, frozen, validated and digested.

Two specs with the same digest are the same image, bit for bit, on the same kind of device and the same
library versions. Whatever does not touch a pixel (ranks, folders, progress) stays out of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from render.errors import BadInput
from render.spec.init_image import LARGEST_SIDE, InitImage, open_image
from render.spec.region_prompt import RegionPrompt
from render.spec.tile_set import SetTile, TileSetLayout, solve_layout

if TYPE_CHECKING:
    from render.model_info import ModelInfo

SAMPLERS = ("euler", "euler-ancestral", "ddim", "dpmpp-2m", "lcm")
BLENDS = ("overlap", "shift")
WRAPS = ("none", "x", "y", "xy")
DTYPES = ("float32", "bfloat16", "float16")
POOLED, LEARNED = ATTENTION_FORMS = ("pooled", "learned")
FORMATS = {"png": 2**31 - 1, "webp": 16_383, "jpeg": 65_500}
"""Output formats and the longest side in pixels that each can hold as one exported file."""
SHAPE_TOLERANCE = 0.02
"""A picture to start from may differ so much from the image's shape; it is stretched by that."""
DIGEST_VERSION = 5
_REALS = (
    "guidance_scale",
    "strength",
    "ilvr",
    "skip_residual",
    "dilated",
    "cross_attention",
    "refiner_start",
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to render. Sizes are in pixels; what has no unit here has none.

    Raises `BadInput` on construction when a value cannot be rendered.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 1024
    height: int = 1024
    seed: int = 0
    steps: int = 25
    guidance_scale: float | None = None
    """How closely to follow the prompt; None is the model's own way, and at 1 nothing is guided."""
    sampler: str = "euler"
    model: str = "builtin"
    refiner: str | None = None
    """A model that takes over from `model` in the last stage: a folder or a hub id."""
    refiner_start: float = 0.8
    """The share of the noise levels after which it does, 0 < s < 1 (diffusers' `denoising_start`)."""
    blend: str = "overlap"
    wrap: str = "none"
    """Which sides are joined without a seam: `x` left and right, `y` top and bottom, `xy` both."""
    dtype: str = "float32"
    format: str = "png"
    quality: int = 90
    strength: float = 0.3
    """How far each cascade stage that starts from a picture is noised before it is denoised again,
    0 < s <= 1: all but the first stage, and the first one too where `init` is given."""
    ilvr: float = 1.0
    """How firmly a stage keeps colours and coarse shapes of a smaller picture that it starts from, 0 to 1."""
    skip_residual: float = 0.0
    """How firmly a stage is held to the one below while it is denoised, 0 to 1; fades over its steps."""
    dilated: float = 0.0
    """How firmly it is held to what the model makes of the whole canvas seen through every n-th latent, 0 to
    1; fades over its steps. Costs one more pass over the canvas at each of them."""
    cross_attention: float = 0.0
    """How much a window attends to all the others beside itself, 0 to 1; fades over a stage's steps."""
    cross_attention_form: str = POOLED
    """How it does: `pooled` needs no training, `learned` is for a model that brings a trained module."""
    variation: int = 0
    """Another finish of the same composition: what decides the composition draws the same noise, the stages
    after it draw other noise. 0 is the picture itself."""
    init: InitImage | None = None
    """A picture to start from, in place of noise (image to image)."""
    boxes: tuple[RegionPrompt, ...] = ()
    """Prompts for parts of the picture."""
    tile_set: tuple[SetTile, ...] = ()
    """Tiles that the picture is a sheet of; any two whose sides are marked alike join."""
    window_batch: int | None = None
    """Most evaluations (of a window, without or with the prompt) per model call; None lets the size of the
    model's windows say. Kernels round differently at other batch shapes, so it is part of the image."""
    tile_size: int = 512
    """Side of a pyramid tile in pixels, a power of two from 64 to 2048."""

    def __post_init__(self) -> None:
        _check_text(self)
        _check_init(self.init)
        if not isinstance(self.boxes, tuple) or not all(isinstance(box, RegionPrompt) for box in self.boxes):
            raise BadInput("boxes", self.boxes, "is no list of boxes; write e.g. 0,0,0.5,1: a red vase")
        if not isinstance(self.tile_set, tuple) or not all(isinstance(t, SetTile) for t in self.tile_set):
            raise BadInput("tile_set", self.tile_set, "is no list of tiles; write e.g. lawn: a,b,,")
        _check_size("width", self.width, self.format)
        _check_size("height", self.height, self.format)
        _check_whole("seed", self.seed, 0, 2**63 - 1)
        _check_whole("variation", self.variation, 0, 2**31 - 1)
        _check_whole("steps", self.steps, 1, 1000)
        _check_whole("quality", self.quality, 1, 100)
        if self.window_batch is not None:
            _check_whole("window_batch", self.window_batch, 1, 256)
        _check_whole("tile_size", self.tile_size, 64, 2048)
        if self.tile_size & (self.tile_size - 1):
            raise BadInput("tile_size", self.tile_size, "is not a power of two; use 256, 512 or 1024")
        if self.guidance_scale is not None:
            _check_real("guidance_scale", self.guidance_scale, 0.0, 100.0)
        _check_real("strength", self.strength, 0.01, 1.0)
        for name in ("ilvr", "skip_residual", "dilated", "cross_attention"):
            _check_real(name, getattr(self, name), 0.0, 1.0)
        _check_refiner(self.refiner, self.refiner_start, self.steps)
        if self.tile_set and self.wrap != "none":
            raise BadInput("wrap", self.wrap, "does not go with a tile set, whose marks say it; leave it out")
        if self.dilated and (self.wrap_y or self.wrap_x):
            raise BadInput("dilated", self.dilated, "does not go with sides that wrap; set it to 0")
        if self.init is not None:
            _check_shape(self.init, self.width, self.height)

    def guidance(self, info: ModelInfo) -> float:
        """The guidance scale that is rendered with."""
        return info.guidance_scale if self.guidance_scale is None else self.guidance_scale

    @property
    def tile_set_layout(self) -> TileSetLayout | None:
        """Where the tiles of its set lie; raises `BadInput` for a set that cannot be laid out."""
        return solve_layout(self.tile_set, self.width, self.height) if self.tile_set else None

    @property
    def wrap_y(self) -> bool:
        return "y" in self.wrap if self.tile_set_layout is None else self.tile_set_layout.wrap_y

    @property
    def wrap_x(self) -> bool:
        return "x" in self.wrap if self.tile_set_layout is None else self.tile_set_layout.wrap_x

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Spec:
        """Build a spec from names and values; unknown names are refused with the nearest known one.

        `init` may be a path: the picture is read then, and the image gets its size unless another is given.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise BadInput("key", key, f"is unknown; {_nearest(str(key), known)}")
        if "prompt" not in values:
            raise BadInput("prompt", None, "is missing; say what to render")
        given = {name: _coerced(name, value) for name, value in values.items()}
        return cls(**_size_of(given.get("init")) | given)

    def with_changes(self, **changes: Any) -> Spec:
        """A new, validated spec with some values replaced."""
        return replace(self, **changes)

    def seed_of(self, stage: int) -> int:
        """What a stage's noise is drawn with; the first stage or `init` decides the composition."""
        if self.variation == 0 or (stage == 0 and self.init is None):
            return self.seed
        drawn = hashlib.sha256(f"{self.seed}/{self.variation}".encode()).digest()
        return int.from_bytes(drawn[:8], "big") >> 1

    def canonical_json(self, model_digest: str) -> str:
        """Every value written out, keys sorted, no spaces; models enter by the digests of their weights.

        `model_digest` is `MODEL+REFINER` where the spec names a refiner (`render.models.model_paths.model_info`).
        """
        model, _, refiner = model_digest.partition("+")
        if bool(refiner) != (self.refiner is not None):
            raise ValueError(f"{model_digest!r} are not the digests of {self.model!r} and {self.refiner!r}")
        document = asdict(self) | {"model": model, "refiner": refiner or None, "version": DIGEST_VERSION}
        if self.init is not None:
            # Where it lies does not touch a pixel.
            del document["init"]["path"]
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def digest(self, model_digest: str) -> str:
        """The image's identity: SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.canonical_json(model_digest).encode()).hexdigest()


def read_spec_file(path: Path) -> dict[str, Any]:
    """Names and values from a .json, .yaml, .yml or .toml file; raises `BadInput` when it cannot be read."""
    readers: dict[str, Callable[[str], Any]] = {
        ".json": json.loads,
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".toml": tomllib.loads,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BadInput("spec", str(path), f"has an unknown ending; use one of {', '.join(readers)}")
    try:
        values = reader(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise BadInput("spec", str(path), f"cannot be read ({exc.strerror}); check the path") from exc
    except (ValueError, yaml.YAMLError) as exc:
        reason = str(exc).splitlines()[0]
        raise BadInput(
            "spec", str(path), f"is not valid {path.suffix[1:]} ({reason}); mend the file"
        ) from exc
    if not isinstance(values, dict):
        raise BadInput("spec", str(path), "holds no names and values; write e.g. prompt: a red vase")
    return beside(path, values)


def beside(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file, with the paths that it names taken from where it lies."""
    found = dict(values)
    if isinstance(found.get("init"), str):
        found["init"] = str(file.parent / found["init"])
    return found


def parse_size(text: str) -> tuple[int, int]:
    """`1536x1024` -> (width, height) in pixels; raises `BadInput` when it is not of that form."""
    width, cross, height = text.lower().partition("x")
    if not (cross and _is_whole(width) and _is_whole(height)):
        raise BadInput("size", text, "is not WIDTHxHEIGHT in pixels; use e.g. 1024x1024")
    return int(width), int(height)


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()


def _coerced(name: str, value: Any) -> Any:
    # YAML and JSON write 4 where 4.0 is meant, and the digest must not tell them apart.
    if name in _REALS and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if name == "boxes" and isinstance(value, (list, tuple)):
        return tuple(RegionPrompt.from_any(each) for each in value)
    if name == "tile_set" and isinstance(value, (list, tuple)):
        return tuple(SetTile.from_any(each) for each in value)
    if name == "init" and isinstance(value, str):
        return open_image(Path(value))
    if name == "init" and isinstance(value, Mapping):
        return InitImage(**value)
    return value


def _size_of(init: InitImage | None) -> dict[str, int]:
    """The image's size where only a picture to start from tells it: the nearest multiples of 8 px."""
    if init is None:
        return {}
    return {"width": max(8, round(init.width / 8) * 8), "height": max(8, round(init.height / 8) * 8)}


def _check_init(init: object) -> None:
    if init is not None and not isinstance(init, InitImage):
        raise BadInput("init", init, "is no path; name a png, jpeg, webp or tiff")


def _check_shape(init: InitImage, width: int, height: int) -> None:
    fitting = max(8, round(width * init.height / init.width / 8) * 8)
    # A size has to be a multiple of 8, which a small picture's shape may not allow any better.
    if abs(height - fitting) > max(8, SHAPE_TOLERANCE * fitting):
        raise BadInput(
            "init",
            init.path,
            f"is {init.width}x{init.height}, another shape than {width}x{height}; use --size "
            f"{width}x{fitting}, or crop it",
        )


def _check_refiner(refiner: str | None, start: Any, steps: int) -> None:
    _check_real("refiner_start", start, 0.0, 1.0)
    if not 0.0 < start < 1.0:
        raise BadInput("refiner_start", start, "leaves one of the two models no step; use e.g. 0.8")
    if refiner is None:
        return
    _check_is_text("refiner", refiner)
    if not refiner.strip():
        raise BadInput("refiner", refiner, "is empty; use a folder or a hub id, or leave it out")
    if steps * (1.0 - start) < 1.0 - 1e-9:
        raise BadInput("refiner_start", start, f"leaves the refiner none of {steps} steps; use more steps")


def _check_is_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise BadInput(name, value, "is not text; put it in quotes")
    # Half a surrogate pair, which JSON can write, has no bytes; a null byte no database takes.
    if any(0xD800 <= ord(sign) <= 0xDFFF or sign == "\0" for sign in value):
        raise BadInput(name, ascii(value)[:80], "holds characters that are not text; leave them out")


def _check_text(spec: Spec) -> None:
    choices = {
        "sampler": SAMPLERS,
        "blend": BLENDS,
        "wrap": WRAPS,
        "dtype": DTYPES,
        "format": tuple(FORMATS),
        "cross_attention_form": ATTENTION_FORMS,
    }
    for name in ("prompt", "negative_prompt", "model", *choices):
        _check_is_text(name, getattr(spec, name))
    if not spec.prompt.strip():
        raise BadInput("prompt", spec.prompt, "is empty; say what to render")
    if not spec.model.strip():
        raise BadInput("model", spec.model, "is empty; use builtin, a folder or a hub id")
    for name, allowed in choices.items():
        if getattr(spec, name) not in allowed:
            raise BadInput(name, getattr(spec, name), f"is unknown; use one of {', '.join(allowed)}")


def _check_size(name: str, value: Any, form: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(name, value, "is not a whole number of pixels; use e.g. 1024")
    if value <= 0:
        raise BadInput(name, value, "is not positive; use e.g. 1024")
    if value % 8:
        below = max(8, value // 8 * 8)
        raise BadInput(name, value, f"is not a multiple of 8 px; use {below} or {value // 8 * 8 + 8}")
    limit = min(FORMATS[form], LARGEST_SIDE)
    if value > limit:
        raise BadInput(name, value, f"is above the limit of {form}, {limit} px; use a smaller size or png")


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(name, value, f"is not a whole number from {low} to {high}")


def _check_real(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, float) or not math.isfinite(value):
        raise BadInput(name, value, f"is not a finite number; use {low} to {high}")
    if not low <= value <= high:
        raise BadInput(name, value, f"is out of range; use {low} to {high}")


def _nearest(key: str, known: list[str]) -> str:
    import difflib

    match = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {match[0]}?" if match else f"use one of {', '.join(known)}"
