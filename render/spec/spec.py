"""The spec: everything that decides the pixels of an image, frozen, validated and digested.

Two specs with the same digest are the same image, bit for bit, on the same kind of device and the same
library versions. Whatever does not touch a pixel (ranks, folders, progress) stays out of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.spec.choices import (
    AUTO,
    DISPLAY_P3,
    FORMATS,
    IMAGE,
    LOSSLESS,
    NO_ALPHA,
    NO_QUANTIZATION,
)
from render.spec.control import check_controls
from render.spec.cutout import is_cutout
from render.spec.embedding import Embedding, check_words
from render.spec.enlarger import EnlargerFile
from render.spec.fields import Shown, SpecField
from render.spec.files import FILE_FIELDS, IMAGE_FIELDS, PARTS_OF_FILES, expand_size
from render.spec.init_defaults import with_init_defaults
from render.spec.init_image import InitImage, MaskImage
from render.spec.lora import Lora, check_once
from render.spec.placement import CROP, EXACT, OUTPAINT, Placement, place
from render.spec.reference import check_references, check_seen
from render.spec.source_image import SourceImage
from render.spec.spec_fields import SpecFields
from render.spec.tile_set import TileSetLayout, solve_layout
from render.spec.validation import CONFIG

if TYPE_CHECKING:
    from render.model_info import ModelInfo

DIGEST_VERSION = 5
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Spec(SpecFields):
    """What to render. Sizes are in pixels; what has no unit here has none.

    Raises `BadInput` on construction when a value cannot be rendered.
    """

    def __post_init__(self) -> None:
        """Check what depends on several fields."""
        for name, value in (("width", self.width), ("height", self.height)):
            if value > FORMATS[self.format]:
                limit = f"{self.format}, {FORMATS[self.format]} px"
                fix = f"is above the limit of {limit}; use png or a smaller size"
                raise BadInput(name, value, fix)
        if self.refiner is not None and self.steps * (1.0 - self.refiner_start) < 1.0 - 1e-9:
            fix = f"leaves the refiner none of {self.steps} steps; use more steps"
            raise BadInput("refiner_start", self.refiner_start, fix)
        check_once(self.lora)
        check_words(self.embedding)
        self._check_controls()
        self._check_references()
        if self.tile_set and self.wrap != "none":
            raise BadInput("wrap", self.wrap, "does not go with a tile set, whose labels decide it")
        if self.dilated and (self.wrap_y or self.wrap_x):
            raise BadInput("dilated", self.dilated, "does not go with sides that wrap; set it to 0")
        self._check_source()
        self._check_files()

    def _check_files(self) -> None:
        """Check what the tiles are to hold."""
        if self.bit_depth == 16 and self.format not in LOSSLESS:
            fix = f"does not go with {self.format}; use --format {' or '.join(LOSSLESS)}"
            raise BadInput("bit_depth", self.bit_depth, fix)
        if self.icc == DISPLAY_P3 and self.kept is not None:
            raise BadInput("icc", self.icc, "would change what is kept, which is in sRGB; leave it out")
        if self.alpha == NO_ALPHA:
            return
        if self.format == "jpeg":
            raise BadInput("alpha", self.alpha, "does not go with jpeg; use --format png, webp or tiff")
        if self.init is None or (self.fit == OUTPAINT and self.mask is None):
            fix = "needs an init image with transparency, or a mask; give --init, or leave it out"
            raise BadInput("alpha", self.alpha, fix)
        if self.tile_set or self.shadow:
            name = "tile_set" if self.tile_set else "shadow"
            raise BadInput(name, None, "does not go with --alpha keep; leave one of the two out")

    def _check_controls(self) -> None:
        check_controls(self.control, self.controlnet)
        for picture in self.control:
            picture.check_shape(self.width, self.height)
        for pictures, what in ((self.control, "control"), (self.reference, "reference")):
            if pictures and (self.dilated or self.tile_set):
                name, value = ("dilated", self.dilated) if self.dilated else ("tile_set", None)
                raise BadInput(name, value, f"does not go with {what} pictures; leave it out")

    def _check_references(self) -> None:
        check_references(self.reference, self.reference_mode, self.width, self.height)
        if self.ip_adapter is None:
            return
        check_seen(self.reference, self.reference_mode, self.ip_adapter.path)
        if self.quantize != NO_QUANTIZATION:
            raise BadInput("quantize", self.quantize, "does not go with an IP-Adapter; leave it out")

    def _check_source(self) -> None:
        """Check the init image, and what only goes with one."""
        if self.init is None:
            for name, default in (("mask", None), ("fit", EXACT), ("placement", None), ("shadow", 0.0)):
                if (value := getattr(self, name)) != default:
                    raise BadInput(name, _given(value), "needs an init image; give --init")
            return
        if self.fit == EXACT:
            for name, default in (("anchor", "center"), ("placement", None)):
                if (value := getattr(self, name)) != default:
                    raise BadInput(name, _given(value), "needs another fit; use --fit crop, pad or outpaint")
            self.init.check_shape(self.width, self.height)
        if self.placement is not None and self.fit == CROP:
            raise BadInput("fit", self.fit, "does not go with a placement; use pad or outpaint")
        if isinstance(self.mask, MaskImage):
            self.mask.check_fits(self.init)
        source = self.source
        assert source is not None, "there is an init image"
        if self.shadow and not source.stands_free:
            raise BadInput(
                "shadow", self.shadow, "falls from what a mask keeps; give --mask, or leave it out"
            )
        if source.keeps and self.format == "jpeg":
            raise BadInput("format", self.format, "cannot keep pixels to the byte; use png, webp or tiff")
        if source.keeps and self.tile_set:
            raise BadInput(
                "tile_set", None, "does not go with a mask or outpainting, whose edges differ; leave it out"
            )

    @property
    def source(self) -> SourceImage | None:
        """The init image as it lies on the canvas. Raises `BadInput` where none of it does."""
        if self.init is None:
            return None
        rect = place(
            (self.init.width, self.init.height),
            (self.width, self.height),
            self.fit,
            self.anchor,
            self.placement,
        )
        return SourceImage(
            init=self.init,
            mask=self.mask,
            fit=self.fit,
            rect=rect,
            width=self.width,
            height=self.height,
            shadow=self.shadow,
            depth=self.bit_depth,
        )

    @property
    def images(self) -> dict[str, InitImage]:
        """The image files that the spec names, by field."""
        values = {name: getattr(self, name) for name in IMAGE_FIELDS}
        return {name: value for name, value in values.items() if isinstance(value, InitImage)}

    @property
    def assets(self) -> tuple[InitImage | Lora | Embedding | EnlargerFile, ...]:
        """The files that travel with the spec to the nodes."""
        enlarger = () if self.enlarger is None else (self.enlarger,)
        pictures = *self.images.values(), *self.control, *self.reference
        return *pictures, *self.lora, *self.embedding, *enlarger

    @property
    def prompts(self) -> dict[str, str]:
        """The image's own prompts, by field."""
        return {"prompt": self.prompt, "negative_prompt": self.negative_prompt}

    @property
    def kept(self) -> SourceImage | None:
        """The init image where some of its pixels are kept; None where none are."""
        source = self.source
        return source if source is not None and source.keeps else None

    def guidance(self, info: ModelInfo) -> float:
        """The guidance scale that is rendered with."""
        return info.guidance_scale if self.guidance_scale is None else self.guidance_scale

    @property
    def tile_set_layout(self) -> TileSetLayout | None:
        """Where the tiles of its set are; raises `BadInput` for a set that has no layout."""
        return solve_layout(self.tile_set, self.width, self.height) if self.tile_set else None

    @property
    def wrap_y(self) -> bool:
        return "y" in self.wrap if self.tile_set_layout is None else self.tile_set_layout.wrap_y

    @property
    def wrap_x(self) -> bool:
        return "x" in self.wrap if self.tile_set_layout is None else self.tile_set_layout.wrap_x

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build a spec from names and values; unknown names are refused with the nearest known one.

        `size` may stand for `width` and `height`. `init` may be a path: the image is read then, and the
        result gets its size unless another is given. Raises `BadInput`.
        """
        if not isinstance(values, Mapping):
            raise BadInput("spec", values, "is not names and values; write e.g. prompt: a red vase")
        given = expand_size(values)
        if given.get("init") is not None:
            given = with_init_defaults(given)
        elif is_cutout(given.get("mask")):
            raise BadInput("mask", given["mask"], "needs an init image; give --init")
        return cls.from_values(given, "")

    def to_dict(self) -> dict[str, Any]:
        """Names and values, ready for JSON; fields that were added late are left out where they have their
        default."""
        values = super().to_dict()
        for name, default in self._late_defaults():
            if values[name] == default:
                del values[name]
        return values

    @classmethod
    @cache
    def _late_defaults(cls) -> tuple[tuple[str, Any], ...]:
        return tuple((field.name, field.default) for field in cls.fields() if field.shown.late)

    @classmethod
    @cache
    def inputs(cls) -> tuple[SpecField, ...]:
        """The fields, and `size` before width and height: what a flag, a form or a column may give."""
        found: list[SpecField] = []
        for field in cls.fields():
            if field.name == "width":
                found.append(_size_field(cls.width, cls.height))
            found.append(field)
        return tuple(found)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values with texts (of flags, cells or inputs of a form) turned into what they stand for.

        Raises `BadInput` for a text that stands for nothing; unknown names are left to `from_mapping`.
        """
        known = {field.name: field for field in cls.inputs()}
        return {name: known[name].parse(value) if name in known else value for name, value in values.items()}

    @property
    def model_names(self) -> tuple[str, str | None, str | None, str | None]:
        """The model, its refiner, its autoencoder and its base, as `find_model_paths` takes them."""
        return self.model, self.refiner, self.vae, self.base

    def seed_of(self, stage: int) -> int:
        """The seed of a stage's noise; the first stage, or `init`, decides the composition."""
        anew = self.init is None or (self.repaint == 1.0 and self.kept is not None)
        if self.variation == 0 or (stage == 0 and anew):
            return self.seed
        drawn = hashlib.sha256(f"{self.seed}/{self.variation}".encode()).digest()
        return int.from_bytes(drawn[:8], "big") >> 1

    def canonical_json(self, model_digest: str) -> str:
        """Every value written out, keys sorted, no spaces; models are named by the digests of their weights.

        `model_digest` is `MODEL+REFINER` where the spec names a refiner (see `render.models.model_paths`).
        """
        if self.dtype == AUTO:
            raise ValueError("auto is no number format; see render.models.number_format.resolve_dtype")
        model, _, refiner = model_digest.partition("+")
        if bool(refiner) != (self.refiner is not None):
            raise ValueError(f"{model_digest!r} are not the digests of {self.model!r} and {self.refiner!r}")
        document = self.to_dict() | {"model": model, "refiner": refiner or None, "version": DIGEST_VERSION}
        for name in FILE_FIELDS:
            if isinstance(document.get(name), dict):
                # The path does not touch a pixel.
                del document[name]["path"]
        for name in PARTS_OF_FILES:
            for part in document.get(name, ()):
                del part["path"]
        # The model's digest stands for these too (`render.models.vae_folder`, `render.models.base_folder`).
        document.pop("vae", None)
        document.pop("base", None)
        return _CANONICAL.encode(document)

    def digest(self, model_digest: str) -> str:
        """The image's identity: SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.canonical_json(model_digest).encode()).hexdigest()


def _size_field(width: int, height: int) -> SpecField:
    """`size`, which stands for two fields."""
    return SpecField(
        name="size",
        kind=str,
        optional=False,
        required=False,
        default=f"{width}x{height}",
        choices=(),
        low=None,
        high=None,
        open_ends=False,
        step=None,
        help="WIDTHxHEIGHT in pixels, multiples of 8.",
        examples=("1536x1024",),
        shown=Shown(label="Size", group=IMAGE),
    )


def _given(value: Any) -> Any:
    return (
        value.path
        if isinstance(value, MaskImage)
        else asdict(value)
        if isinstance(value, Placement)
        else value
    )
