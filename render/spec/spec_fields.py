"""The fields of a spec, and nothing else.

A field stands here once: type, limits, default, help and how it is presented. Command-line flags, the REST
model, the board's form, columns of batch files, the JSON schema and the table in docs/SPEC.md derive from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.spec.choices import (
    ALPHAS,
    ATTENTION_FORMS,
    AUTO,
    AUTO_PROFILE,
    BIT_DEPTHS,
    BLENDS,
    COMPOSITION,
    DTYPES,
    FORMATS,
    IMAGE,
    MODEL,
    NO_ALPHA,
    NO_MASK,
    NO_QUANTIZATION,
    OUTPUT,
    POOLED,
    PROFILES,
    QUANTIZATIONS,
    SAMPLERS,
    SOURCE_TYPES,
    STAGES,
    TILE_SIZES,
    TRAINED,
    WRAPS,
)
from render.spec.control import EXAMPLE as CONTROL_EXAMPLE
from render.spec.control import FOLDER_EXAMPLE, Control, ControlNetwork
from render.spec.embedding import EXAMPLE as EMBEDDING_EXAMPLE
from render.spec.embedding import Embedding
from render.spec.enlarger import EXAMPLE as ENLARGER_EXAMPLE
from render.spec.enlarger import EnlargerFile
from render.spec.fields import NO_FLAG, Filled, OneOf, Shown
from render.spec.image_checks import KINDS, LARGEST_SIDE
from render.spec.init_image import InitImage, MaskImage
from render.spec.ip_adapter import EXAMPLE as IP_ADAPTER_EXAMPLE
from render.spec.ip_adapter import IpAdapter
from render.spec.lora import EXAMPLE as LORA_EXAMPLE
from render.spec.lora import Lora
from render.spec.placement import ANCHORS, EXACT, FITS, Placement
from render.spec.placement import EXAMPLE as PLACEMENT_EXAMPLE
from render.spec.prompt_text import FilledPrompt, PromptText
from render.spec.reference import EXAMPLE as REFERENCE_EXAMPLE
from render.spec.reference import REFERENCE_MODES, STYLE, ReferencePicture
from render.spec.region_prompt import EXAMPLE as REGION_EXAMPLE
from render.spec.region_prompt import RegionPrompt
from render.spec.source_image import ALPHA
from render.spec.tile_set import EXAMPLE as TILE_EXAMPLE
from render.spec.tile_set import SetTile
from render.spec.validation import CONFIG, Checked

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


def _ip_adapter(value: Any) -> IpAdapter | None:
    return None if value is None else IpAdapter.from_any(value)


def _placement(value: Any) -> Placement | None:
    return None if value is None else Placement.from_any(value)


def _anchor(value: Any) -> Any:
    return value.replace("centre", "center") if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SpecFields(Checked):
    """What to render. Sizes are in pixels; what has no unit here has none."""

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
        Field(description="The model: builtin, builtin-dit, a folder, a .safetensors file, or a hub id."),
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
            description="How far what the mask leaves free is noised in the first stage; 1 paints it anew. "
            "Around a photograph that is painted on without a mask it is 0.6 at most.",
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
    reference: Annotated[
        tuple[ReferencePicture, ...],
        BeforeValidator(
            _parts_of("reference", ReferencePicture.from_any, REFERENCE_EXAMPLE),
            json_schema_input_type=list[str | ReferencePicture],
        ),
        Field(
            description="Pictures that the model looks at: what the prompt tells it to change, or what the "
            "image is to resemble. For models that take them.",
            examples=[[REFERENCE_EXAMPLE]],
        ),
        Shown(label="Reference pictures", group=COMPOSITION, default="none", local=True, late=True),
    ] = ()
    reference_mode: Annotated[
        str,
        OneOf(REFERENCE_MODES),
        Field(
            description="Every window sees the whole reference (style), or its own part of it (aligned), for "
            "edits that keep the layout.",
        ),
        Shown(label="Reference mode", group=COMPOSITION, late=True),
    ] = STYLE
    ip_adapter: Annotated[
        IpAdapter | None,
        BeforeValidator(_ip_adapter, json_schema_input_type=str | IpAdapter | None),
        Field(
            description="IP-Adapter by which Stable Diffusion 1, 2 and XL look at the references: FILE or "
            "FILE:WEIGHT, with the folder image_encoder beside it.",
            examples=[IP_ADAPTER_EXAMPLE],
        ),
        Shown(label="IP-Adapter", group=MODEL, default="none", local=True, late=True),
    ] = None
    enlarger: Annotated[
        EnlargerFile | None,
        BeforeValidator(_enlarger, json_schema_input_type=str | EnlargerFile | None),
        Field(
            description="Super-resolution network that enlarges between stages, and a smaller init image, in "
            "place of bicubic interpolation: builtin, or a safetensors file of any kind that spandrel loads.",
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
            "image, since kernels round differently at other batch shapes. Images of one window share calls "
            "that one does not fill: 16 suits a catalog of native-size images on a GPU.",
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
