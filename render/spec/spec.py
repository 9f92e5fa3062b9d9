"""The spec: everything that decides the pixels of an image, frozen, validated and digested.

Two specs with the same digest are the same image, bit for bit, on the same kind of device and the same
library versions. Whatever does not touch a pixel (ranks, folders, progress) stays out of it.

A field stands here once: type, limits, default, help and how it is presented. Command-line flags, the REST
model, the board's form, columns of batch files, the JSON schema and the table in docs/SPEC.md derive from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.spec.control import EXAMPLE as CONTROL_EXAMPLE
from render.spec.control import FOLDER_EXAMPLE, Control, ControlNetwork, check_controls
from render.spec.cutout import cutout_mask, is_cutout
from render.spec.embedding import EXAMPLE as EMBEDDING_EXAMPLE
from render.spec.embedding import Embedding, check_words
from render.spec.enlarger import EXAMPLE as ENLARGER_EXAMPLE
from render.spec.enlarger import EnlargerFile
from render.spec.fields import NO_FLAG, Filled, OneOf, Shown, SpecField
from render.spec.files import FILE_FIELDS, IMAGE_FIELDS, PARTS_OF_FILES, expand_size
from render.spec.image_checks import KINDS, LARGEST_SIDE
from render.spec.init_image import InitImage, MaskImage
from render.spec.lora import EXAMPLE as LORA_EXAMPLE
from render.spec.lora import Lora, check_once
from render.spec.placement import ANCHORS, CROP, EXACT, FITS, OUTPAINT, Placement, place
from render.spec.placement import EXAMPLE as PLACEMENT_EXAMPLE
from render.spec.prompt_text import FilledPrompt, PromptText
from render.spec.region_prompt import EXAMPLE as REGION_EXAMPLE
from render.spec.region_prompt import RegionPrompt
from render.spec.source_image import ALPHA, SourceImage
from render.spec.tile_set import EXAMPLE as TILE_EXAMPLE
from render.spec.tile_set import SetTile, TileSetLayout, solve_layout
from render.spec.validation import CONFIG, Checked

if TYPE_CHECKING:
    from render.model_info import ModelInfo

SAMPLERS = ("euler", "euler-ancestral", "ddim", "dpmpp-2m", "lcm")
BLENDS = ("overlap", "shift")
WRAPS = ("none", "x", "y", "xy")
AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
NO_QUANTIZATION = "none"
QUANTIZATIONS = (NO_QUANTIZATION, "int8", "fp8", "nf4")
POOLED, LEARNED = ATTENTION_FORMS = ("pooled", "learned")
FORMATS = {"png": 2**31 - 1, "webp": 16_383, "jpeg": 65_500, "tiff": 2**31 - 1}
"""Output formats and the longest side in pixels that each can hold as one exported file."""
LOSSLESS = ("png", "tiff")
"""Those that hold 16 bits."""
BIT_DEPTHS = (8, 16)
NO_ALPHA, KEEP_ALPHA = ALPHAS = ("none", "keep")
AUTO_PROFILE, SRGB, DISPLAY_P3 = PROFILES = ("auto", "srgb", "p3")
TILE_SIZES = (64, 128, 256, 512, 1024, 2048)
DIGEST_VERSION = 5
NO_MASK = "none"
"""In place of a mask: not even the init image's own transparency is one."""
TRAINED, COMPOSITE = SOURCE_TYPES = ("trained", "composite")
IMAGE, COMPOSITION, MODEL, STAGES, OUTPUT = "Image", "Composition", "Model", "Stages and windows", "Output"
GROUPS = (IMAGE, COMPOSITION, MODEL, STAGES, OUTPUT)
"""In the order in which a form and a table show them; the first one is what most people set."""

Part = TypeVar("Part")
_Mask = Annotated[Annotated[str, OneOf((ALPHA,))] | MaskImage, Field(union_mode="left_to_right")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _parts_of(name: str, read: Callable[[Any], Part], example: str) -> Callable[[Any], tuple[Part, ...]]:
    def read_all(value: Any) -> tuple[Part, ...]:
        if not isinstance(value, list | tuple):
            raise BadInput(name, value, f"is not a list; write e.g. {json.dumps([example])}")
        return tuple(read(each) for each in value)

    return read_all


def _init_image(value: Any) -> InitImage | None:
    return None if value is None else InitImage.from_any(value)


def _mask(value: Any) -> MaskImage | str | None:
    if value is None or value == NO_MASK:
        return None
    return ALPHA if value == ALPHA else MaskImage.from_any(value)


def _enlarger(value: Any) -> EnlargerFile | None:
    return None if value is None else EnlargerFile.from_any(value)


def _placement(value: Any) -> Placement | None:
    return None if value is None else Placement.from_any(value)


def _anchor(value: Any) -> Any:
    return value.replace("centre", "center") if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Spec(Checked):
    """What to render. Sizes are in pixels; what has no unit here has none.

    Raises `BadInput` on construction when a value cannot be rendered.
    """

    prompt: Annotated[
        FilledPrompt,
        Field(description="What to render.", examples=["a red vase on a wooden table"]),
        Shown(label="Prompt", group=IMAGE, flag="PROMPT", long=True),
    ]
    negative_prompt: Annotated[
        PromptText,
        Field(description="What the image should not show.", examples=["blurry, text"]),
        Shown(label="Negative prompt", group=IMAGE, long=True),
    ] = ""
    width: Annotated[
        int,
        Field(ge=8, le=LARGEST_SIDE, multiple_of=8, description="Width in pixels, a multiple of 8."),
        Shown(label="Width", group=IMAGE, flag=NO_FLAG, unit="px"),
    ] = 1024
    height: Annotated[
        int,
        Field(ge=8, le=LARGEST_SIDE, multiple_of=8, description="Height in pixels, a multiple of 8."),
        Shown(label="Height", group=IMAGE, flag=NO_FLAG, unit="px"),
    ] = 1024
    seed: Annotated[
        int,
        Field(ge=0, le=2**63 - 1, description="Seed of the noise; another seed gives another image."),
        Shown(label="Seed", group=IMAGE),
    ] = 0
    steps: Annotated[
        int,
        Field(ge=1, le=1000, description="Denoising steps of the first stage.", examples=[20]),
        Shown(label="Steps", group=IMAGE),
    ] = 25
    guidance_scale: Annotated[
        float | None,
        Field(
            ge=0.0,
            le=100.0,
            description="How closely to follow the prompt; 1 turns classifier-free guidance off.",
            examples=[5.0],
        ),
        Shown(label="Guidance scale", group=IMAGE, default="the model's own"),
    ] = None
    sampler: Annotated[
        str,
        OneOf(SAMPLERS),
        Field(description="The sampler that steps the canvas."),
        Shown(label="Sampler", group=MODEL),
    ] = "euler"
    model: Annotated[
        Filled,
        Field(description="The model: builtin, a folder, a .safetensors file, or a hub id."),
        Shown(label="Model", group=MODEL),
    ] = "builtin"
    lora: Annotated[
        tuple[Lora, ...],
        BeforeValidator(
            _parts_of("lora", Lora.from_any, LORA_EXAMPLE), json_schema_input_type=list[str | Lora]
        ),
        Field(
            description="LoRA on the model, FILE or FILE:WEIGHT: a safetensors file of diffusers, kohya or "
            "ai-toolkit.",
            examples=[[LORA_EXAMPLE]],
        ),
        Shown(label="LoRA", group=MODEL, default="none", local=True, late=True),
    ] = ()
    embedding: Annotated[
        tuple[Embedding, ...],
        BeforeValidator(
            _parts_of("embedding", Embedding.from_any, EMBEDDING_EXAMPLE),
            json_schema_input_type=list[str | Embedding],
        ),
        Field(
            description="A word that the model learns from a file (textual inversion), FILE or FILE:WORD; "
            "Stable Diffusion 1, 2 and XL.",
            examples=[[EMBEDDING_EXAMPLE]],
        ),
        Shown(label="Learned words", group=MODEL, default="none", local=True, late=True),
    ] = ()
    vae: Annotated[
        Filled | None,
        Field(
            description="A folder with an autoencoder in place of the model's own, e.g. TAESD or TAEF1.",
        ),
        Shown(label="Autoencoder", group=MODEL, default="the model's own", local=True, late=True),
    ] = None
    base: Annotated[
        Filled | None,
        Field(
            description="A folder in diffusers' format that completes a single file: tokenizers, text "
            "encoders, autoencoder, whatever the file lacks.",
        ),
        Shown(label="Base of a single file", group=MODEL, default="none", local=True, late=True),
    ] = None
    refiner: Annotated[
        Filled | None,
        Field(description="A model that finishes what the model has begun: a folder, or a hub id."),
        Shown(label="Refiner", group=MODEL, default="none", local=True),
    ] = None
    refiner_start: Annotated[
        float,
        Field(
            gt=0.0,
            lt=1.0,
            description="Share of the noise levels after which the refiner takes over, in the last stage "
            "(diffusers' denoising_start).",
        ),
        Shown(label="Refiner start", group=MODEL, local=True),
    ] = 0.8
    blend: Annotated[
        str,
        OneOf(BLENDS),
        Field(
            description="How windows meet: overlap averages overlapping windows, shift moves the grid of "
            "windows at every step."
        ),
        Shown(label="Blend", group=STAGES),
    ] = "overlap"
    wrap: Annotated[
        str,
        OneOf(WRAPS),
        Field(
            description="Sides that join without a seam: x left and right, y top and bottom, xy both.",
            examples=["x"],
        ),
        Shown(label="Wrap", group=COMPOSITION),
    ] = "none"
    dtype: Annotated[
        str,
        OneOf((*DTYPES, AUTO)),
        Field(
            description="Number format that the model computes in; auto is float32 on a CPU, and on a GPU "
            "float16 where the model's files are in it, else bfloat16.",
        ),
        Shown(label="Dtype", group=MODEL),
    ] = "float32"
    quantize: Annotated[
        str,
        OneOf(QUANTIZATIONS),
        Field(
            description="What the weights of the network and of the text encoders are kept in; the model "
            "still computes in its dtype.",
        ),
        Shown(label="Quantize", group=MODEL, late=True),
    ] = NO_QUANTIZATION
    format: Annotated[
        str,
        OneOf(tuple(FORMATS)),
        Field(description="File format of the tiles."),
        Shown(label="Format", group=OUTPUT),
    ] = "png"
    quality: Annotated[
        int,
        Field(ge=1, le=100, description="Quality of webp and jpeg."),
        Shown(label="Quality", group=OUTPUT),
    ] = 90
    strength: Annotated[
        float,
        Field(
            ge=0.01,
            le=1.0,
            description="How far a stage that starts from an image noises it before denoising: all stages "
            "but the first, and the first too if there is an init image.",
        ),
        Shown(label="Strength", group=STAGES),
    ] = 0.3
    ilvr: Annotated[
        Share,
        Field(
            description="How strictly a stage keeps the colors and coarse shapes of the image it starts from "
            "(ILVR).",
        ),
        Shown(label="ILVR", group=STAGES),
    ] = 1.0
    skip_residual: Annotated[
        Share,
        Field(
            description="How strongly a stage is pulled to the previous one, decaying over its steps "
            "(DemoFusion).",
        ),
        Shown(label="Skip residual", group=STAGES),
    ] = 0.0
    dilated: Annotated[
        Share,
        Field(
            description="How much the model's prediction on dilated views of the whole canvas counts, "
            "decaying over a stage's steps (DemoFusion). Costs one more pass over the canvas per step.",
        ),
        Shown(label="Dilated views", group=STAGES),
    ] = 0.0
    cross_attention: Annotated[
        Share,
        Field(
            description="How much a window attends to all other windows, decaying over a stage's steps.",
        ),
        Shown(label="Cross-window attention", group=STAGES),
    ] = 0.0
    cross_attention_form: Annotated[
        str,
        OneOf(ATTENTION_FORMS),
        Field(
            description="Form of the cross-window attention: pooled needs no training, learned needs a model "
            "with a trained module."
        ),
        Shown(label="Form of cross-window attention", group=STAGES),
    ] = POOLED
    variation: Annotated[
        int,
        Field(
            ge=0,
            le=2**31 - 1,
            description="Another finish of the same composition: later stages draw other noise. 0 is the "
            "image itself.",
        ),
        Shown(label="Variation", group=COMPOSITION),
    ] = 0
    init: Annotated[
        InitImage | None,
        BeforeValidator(_init_image, json_schema_input_type=str | InitImage | None),
        Field(
            description=f"Image to start from (image to image): {KINDS}. The result gets its size unless "
            "another is given.",
            examples=["vase.webp"],
        ),
        Shown(label="Init image", group=COMPOSITION, default="none", local=True),
    ] = None
    mask: Annotated[
        _Mask | None,
        BeforeValidator(_mask, json_schema_input_type=str | MaskImage | None),
        Field(
            description="What of the init image is kept, to the byte at its own scale: an image, white where "
            "to paint anew; or alpha, the init image's own transparency; or cutout, which has a network "
            "find the product (cutout:NETWORK says which); or none.",
            examples=["mask.png"],
        ),
        Shown(
            label="Mask",
            group=COMPOSITION,
            default="alpha where the init image has it",
            local=True,
            late=True,
        ),
    ] = None
    repaint: Annotated[
        float,
        Field(
            ge=0.01,
            le=1.0,
            description="How far what the mask leaves free is noised in the first stage; 1 paints it anew.",
        ),
        Shown(label="Repaint", group=COMPOSITION, local=True, late=True),
    ] = 1.0
    shadow: Annotated[
        Share,
        Field(
            description="How dark a soft contact shadow is that is drawn under what the mask keeps; 0 draws "
            "none, and leaves it to the model.",
        ),
        Shown(label="Shadow", group=COMPOSITION, local=True, late=True),
    ] = 0.0
    fit: Annotated[
        str,
        OneOf(FITS),
        Field(
            description="How an init image of another shape becomes one of this size: crop cuts it, pad puts "
            "white around it, outpaint paints around it and keeps it; exact refuses it.",
        ),
        Shown(label="Fit", group=COMPOSITION, local=True, late=True),
    ] = EXACT
    anchor: Annotated[
        str,
        OneOf(ANCHORS),
        BeforeValidator(_anchor),
        Field(description="What of the init image, or where on the image, a fit keeps it."),
        Shown(label="Anchor", group=COMPOSITION, local=True, late=True),
    ] = "center"
    placement: Annotated[
        Placement | None,
        BeforeValidator(_placement, json_schema_input_type=str | Placement | None),
        Field(
            description="x,y,width: where the init image lies, in shares of the image's width, height and "
            "width. What is around it is painted, or white with --fit pad.",
            examples=[PLACEMENT_EXAMPLE],
        ),
        Shown(label="Placement", group=COMPOSITION, default="by fit and anchor", local=True, late=True),
    ] = None
    source_type: Annotated[
        str,
        OneOf(SOURCE_TYPES),
        Field(
            description="What the files declare as their digital source type (IPTC): trained, made by a "
            "model; composite, made by a model from a picture. composite where an init image is given by its "
            "path.",
        ),
        Shown(label="Source type", group=OUTPUT, local=True, late=True),
    ] = TRAINED
    alpha: Annotated[
        str,
        OneOf(ALPHAS),
        Field(
            description="Transparency of the result: none, or keep: what of it the mask keeps, or without a "
            "mask the init image's own.",
        ),
        Shown(label="Alpha", group=OUTPUT, local=True, late=True),
    ] = NO_ALPHA
    bit_depth: Annotated[
        int,
        OneOf(BIT_DEPTHS),
        Field(description="Bits of each channel of the tiles; 16 for png and tiff."),
        Shown(label="Bit depth", group=OUTPUT, unit="bits", late=True),
    ] = 8
    icc: Annotated[
        str,
        OneOf(PROFILES),
        Field(
            description="ICC profile that the tiles carry: srgb; p3 (Display P3), to which the pixels are "
            "converted; or auto, which is srgb, in png files as a mark alone.",
        ),
        Shown(label="ICC profile", group=OUTPUT, late=True),
    ] = AUTO_PROFILE
    control: Annotated[
        tuple[Control, ...],
        BeforeValidator(
            _parts_of("control", Control.from_any, CONTROL_EXAMPLE),
            json_schema_input_type=list[str | Control],
        ),
        Field(
            description="Pictures whose layout the image follows, each KIND=IMAGE[:WEIGHT][:START-END]: "
            "ready-made edges, depth or the like of the whole image, and the share of the steps in which "
            "they count. They need a ControlNet.",
            examples=[[CONTROL_EXAMPLE]],
        ),
        Shown(label="Control pictures", group=COMPOSITION, default="none", local=True, late=True),
    ] = ()
    controlnet: Annotated[
        tuple[ControlNetwork, ...],
        BeforeValidator(
            _parts_of("controlnet", ControlNetwork.from_any, FOLDER_EXAMPLE),
            json_schema_input_type=list[str | ControlNetwork],
        ),
        Field(
            description="Folder of the ControlNet of all control pictures, or one of each in their order.",
            examples=[[FOLDER_EXAMPLE]],
        ),
        Shown(label="ControlNet", group=MODEL, default="none", local=True, late=True),
    ] = ()
    enlarger: Annotated[
        EnlargerFile | None,
        BeforeValidator(_enlarger, json_schema_input_type=str | EnlargerFile | None),
        Field(
            description="Super-resolution network that enlarges between stages, and a smaller init image, in "
            "place of bicubic interpolation: a safetensors file of any kind that spandrel loads.",
            examples=[ENLARGER_EXAMPLE],
        ),
        Shown(label="Enlarger", group=STAGES, default="bicubic", local=True, late=True),
    ] = None
    boxes: Annotated[
        tuple[RegionPrompt, ...],
        BeforeValidator(
            _parts_of("boxes", RegionPrompt.from_any, REGION_EXAMPLE),
            json_schema_input_type=list[str | RegionPrompt],
        ),
        Field(
            description="Prompts for parts of the image, each x,y,width,height: prompt in shares of its "
            "width and height.",
            examples=[[REGION_EXAMPLE]],
        ),
        Shown(label="Region prompts", group=COMPOSITION, flag="--box", default="none"),
    ] = ()
    tile_set: Annotated[
        tuple[SetTile, ...],
        BeforeValidator(
            _parts_of("tile_set", SetTile.from_any, TILE_EXAMPLE),
            json_schema_input_type=list[str | SetTile],
        ),
        Field(
            description="Tiles that the image is made of, each name: left,right,top,bottom with an edge "
            "label per side. Any two tiles join where their labels are equal.",
            examples=[[TILE_EXAMPLE, "path: b,a,,"]],
        ),
        Shown(label="Tile set", group=COMPOSITION, flag="--set-tile", default="none"),
    ] = ()
    window_batch: Annotated[
        int | None,
        Field(
            ge=1,
            le=256,
            description="Evaluations (a window, with or without the prompt) per model call. Part of the "
            "image, since kernels round differently at other batch shapes.",
            examples=[4],
        ),
        Shown(label="Window batch", group=MODEL, default="4 to 16, by window size"),
    ] = None
    tile_size: Annotated[
        int,
        OneOf(TILE_SIZES),
        Field(description="Side of a pyramid tile in pixels."),
        Shown(label="Tile size", group=OUTPUT, unit="px"),
    ] = 512

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
        if self.control and (self.dilated or self.tile_set):
            name, value = ("dilated", self.dilated) if self.dilated else ("tile_set", None)
            raise BadInput(name, value, "does not go with control pictures; leave it out")

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
        return *self.images.values(), *self.control, *self.lora, *self.embedding, *enlarger

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
            given = _with_init(given)
        elif is_cutout(given.get("mask")):
            raise BadInput("mask", given["mask"], "needs an init image; give --init")
        return cls.from_values(given, "")

    def to_dict(self) -> dict[str, Any]:
        """Names and values, ready for JSON; fields that were added late are left out where they have their
        default."""
        late = {field.name: field.default for field in self.fields() if field.shown.late}
        return {
            name: value
            for name, value in super().to_dict().items()
            if name not in late or value != late[name]
        }

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
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

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


def _with_init(given: dict[str, Any]) -> dict[str, Any]:
    """The values of a spec with an init image, with what follows from it where nothing else is given."""
    is_file = isinstance(given["init"], str)
    init = InitImage.from_any(given["init"])
    found: dict[str, Any] = {"init": init}
    if is_cutout(given.get("mask")):
        if isinstance(given["init"], dict):
            # It names a file of another machine, or of an earlier day.
            raise BadInput("mask", given["mask"], "needs the path of an init image; give --init")
        given = given | {"mask": str(cutout_mask(given["mask"], init))}
    if is_file:
        found["source_type"] = given.get("source_type", COMPOSITE)
        if (
            given.get("mask") is None
            and not given.get("tile_set")
            and InitImage.is_transparent(Path(init.path))
        ):
            found["mask"] = ALPHA
        elif given.get("mask") == ALPHA and not InitImage.is_transparent(Path(init.path)):
            raise BadInput("mask", ALPHA, "is the init image's transparency, and it has none; give a mask")
        elif (
            given.get("alpha") == KEEP_ALPHA
            and given.get("mask") in (None, NO_MASK)
            and not InitImage.is_transparent(Path(init.path))
        ):
            fix = "keeps the init image's transparency, and it has none; give a mask, or leave it out"
            raise BadInput("alpha", KEEP_ALPHA, fix)
    if given.get("placement") is not None and given.get("fit") is None:
        found["fit"] = OUTPAINT
    size: dict[str, int] = init.canvas_size
    if (found | given).get("mask") not in (None, NO_MASK) and not {"width", "height", "fit"} & set(
        given | found
    ):
        # At its own scale, so that what is kept is equal to the byte.
        size, found["fit"] = init.own_size, CROP
    return size | given | found


def _given(value: Any) -> Any:
    return (
        value.path
        if isinstance(value, MaskImage)
        else asdict(value)
        if isinstance(value, Placement)
        else value
    )
