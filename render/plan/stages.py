"""The stages of the cascade: from the model's native size, where the composition is decided, to the image."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from operator import itemgetter

from render.errors import BadInput
from render.model_info import ModelInfo
from render.plan.dilation import Dilation, dilation_of
from render.plan.geometry import Axis, Grid, Layer
from render.plan.latent_classes import LatentClasses, make_latent_classes
from render.plan.region_prompts import region_area
from render.plan.tiling import Tiling
from render.spec import LEARNED, POOLED, Spec
from render.spec.source_image import SourceImage
from render.spec.tile_set import TileSetLayout

OVERLAP_SHARE = 4
"""`overlap` blend: a quarter of a window is shared with the next one."""
SHIFT_SHARE = 16
"""`shift` blend: a sixteenth is, just enough for a soft edge."""

ENLARGED = math.sqrt(2)
"""From this factor on an init image is enlarged rather than repainted."""
PAINTING_STAGES = 2
"""Stages of the first size where pixels of the init image are kept (see `render.guidance.kept_pixels`)."""
SECOND_PAINTING = 0.6
"""How far the second of them is noised, unless the spec asks for more or less: shadows fit the product then,
and what the first one has painted behind it stays. From more noise the model may paint a second rim or neck
beside the product's, and a table that is higher on one side of it."""
CONTINUING = 0.6
"""How far the surroundings of a photograph that is painted on are noised in the first stage, at most. They
start as its edges drawn out. From noise alone the model may paint a second product beside the first."""
MIN_BOX_SHARE = 4
"""A region prompt is used from the stage on where its shorter side is a quarter of a window: models cannot
compose anything smaller."""
LATENTS_PER_CALL = 4 * 64 * 64
MIN_WINDOWS_PER_CALL, MAX_WINDOWS_PER_CALL = 4, 16
"""Latents per model call, roughly, and the limits of its windows: small windows use a processor well only
together, large ones fill its memory."""
MAX_JOINED = 32
"""Windows of calls that run as one, at most, where the spec sets no limit."""
CALL_COST = 1
"""Fixed cost of a model call, in evaluations: from 2 for the built-in model to a fraction for large ones."""
PAIRED_LATENTS = 2 * 64
"""A window of a multiple of so many latents has an even number of cells in a network's deepest layer. A
matrix product rounds the last of an odd number of rows differently, and which window is last depends on the
ranks: so windows of other shapes are evaluated one by one or in even numbers."""
MAX_WINDOWS = 1 << 16
"""Windows of a stage, region prompts included. Planning deals out each of them: some seconds for so many."""
MAX_REGIONS = 256
"""Region prompts of an image; each is a layer of windows of its own."""
MAX_LATENTS = 1 << 26
"""Latents of a canvas: 65536x65536 pixels of a model with 8 pixels per latent."""
COUNTED_RANKS = (1, 2, 4, 8)
"""Numbers of ranks that a batch is chosen for, even in the first, smallest stage."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One resolution of the cascade. `width` and `height` in pixels; the grid in latents."""

    index: int
    width: int
    height: int
    first_step: int
    """The step of the sampler's schedule at which this stage starts; 0 starts from pure noise."""
    steps: int
    """The step after the last one, the same for all stages."""
    batch: int
    """Evaluations per model call: the batch shape whose bits the image has."""
    grid: Grid
    most_joined: int = 1
    """Evaluations of calls that may run as one (`render.models.joined_calls`), which changes no bit."""
    passes: int = 1
    """Evaluations of each window: 2 with classifier-free guidance, without and with the prompt."""
    patches: tuple[Layer, ...] = ()
    """The spec's region prompts that are large enough at this stage; `text` is 1 for the first one."""
    dilation: Dilation | None = None
    """The dilated views that guide the windows; None where the spec has none or the canvas is too small."""
    tile_set_layout: TileSetLayout | None = None
    """The layout of the tile set that the canvas shows, if any."""
    enlarges: bool = False
    """It starts from something smaller, which may guide it."""
    paints: bool = False
    """It paints around the kept pixels of the init image, at the size at which the composition is decided:
    nothing else of what it starts from is to be kept."""
    composes: frozenset[int] = frozenset()
    """The `text` of the patches that begin here: no stage below shows what they describe."""

    @property
    def view_batch(self) -> int:
        """Evaluations per model call of the dilated views, which may have any shape: an even number."""
        return self.batch + self.batch % 2

    @property
    def latent_classes(self) -> LatentClasses | None:
        """The latents that are shared because edges of tiles are; None where there are none."""
        layout = self.tile_set_layout
        classes = None if layout is None else make_latent_classes(layout, self.grid)
        return classes if classes is not None and len(classes.places) else None

    def tiling(self, world_size: int) -> Tiling:
        """The stage dealt out to a number of ranks. Only the plan calls it (`render.plan.plan.StagePlan`)."""
        return Tiling(grid=self.grid, world_size=world_size, passes=self.passes, patches=self.patches)

    def offset(self, seed: int, step: int) -> tuple[int, int]:
        """(y, x) offset of the grid at a step, in latents: a function of (seed, stage, step) alone."""
        rows, cols = self.grid.rows.offsets, self.grid.cols.offsets
        if rows == cols == 1:
            return 0, 0
        draw = hashlib.sha256(f"{seed}/{self.index}/{step}".encode()).digest()
        return int.from_bytes(draw[:8], "big") % rows, int.from_bytes(draw[8:16], "big") % cols


def make_stages(spec: Spec, info: ModelInfo) -> tuple[Stage, ...]:
    """Sizes halve from the image's own size down to the model's native area, in multiples of a latent.

    Where an init image is enlarged, they halve down to its size instead: it takes the place of the stages
    below, so its composition is kept. An init image that keeps its size is repainted from the native size
    upwards, since the windows of a large image see too little of it to agree on something new.

    Raises `BadInput` when the spec needs what the model cannot do, for an image that wraps and is too
    short for its windows, and for one of more than `MAX_LATENTS` or `MAX_WINDOWS`.
    """
    if spec.cross_attention and not info.token_width:
        raise BadInput(
            "cross_attention",
            spec.cross_attention,
            f"needs a model with self-attention in its middle block, which {spec.model} lacks; set it to 0",
        )
    if spec.cross_attention and spec.cross_attention_form == LEARNED and not info.has_cross_window_attention:
        raise BadInput(
            "cross_attention_form",
            spec.cross_attention_form,
            f"needs a model with trained cross-window attention, which {spec.model} lacks; use {POOLED}",
        )
    check_sampler(spec.model, spec.sampler, spec.steps, info)
    _check_references(spec, info)
    _check_multiples(spec, info)
    _check_closes("height", spec.height, spec.wrap_y, info)
    _check_closes("width", spec.width, spec.wrap_x, info)
    sizes = _sizes(spec, info)
    _check_cost(spec, info)
    if spec.tile_set_layout is not None:
        for name, parts, lengths in zip(
            ("width", "height"),
            (spec.tile_set_layout.cols, spec.tile_set_layout.rows),
            zip(*sizes, strict=True),
            strict=True,
        ):
            _check_parts(name, parts, lengths, info.scale_factor)
    stages = []
    begun = frozenset[int]()
    for index, size in enumerate(sizes):
        stage = _stage(spec, info, index, *size)
        texts = frozenset(patch.text for patch in stage.patches)
        paints = spec.kept is not None and index < PAINTING_STAGES
        below = not paints and (index > 0 or _is_enlarged(spec.source))
        stages.append(replace(stage, enlarges=below, paints=paints, composes=texts - begun))
        begun = texts
    return tuple(stages)


def _check_references(spec: Spec, info: ModelInfo) -> None:
    if spec.ip_adapter is not None:
        return
    count, least, most = len(spec.reference), info.least_references, info.most_references
    if count < least:
        raise BadInput("reference", count, f"pictures are too few for {spec.model}; give --reference IMAGE")
    if count > most:
        fix = f"is one more than {spec.model} takes; give {most}"
        if not most:
            fix = f"is nothing that {spec.model} looks at; leave it out"
        if info.family in ("sd", "sdxl"):
            fix = f"is seen by {spec.model} through an IP-Adapter alone; give --ip-adapter FILE"
        raise BadInput("reference", spec.reference[most].path, fix)


def check_sampler(model: str, sampler: str, steps: int, info: ModelInfo) -> None:
    """Raise `BadInput` for a sampler that cannot step the model's noise, and for more steps than the model
    has noise levels."""
    if info.samplers and sampler not in info.samplers:
        raise BadInput(
            "sampler",
            sampler,
            f"cannot step the noise of {model} as its scheduler does; use {', '.join(info.samplers)}",
        )
    most = min(info.most_steps, info.most_lcm_steps) if sampler == "lcm" else info.most_steps
    if steps > most:
        raise BadInput("steps", steps, f"do not fit the {sampler} sampler; use at most {most}")


def _check_multiples(spec: Spec, info: ModelInfo) -> None:
    """The image's sides are whole latents."""
    unit = info.scale_factor
    for name, side in (("width", spec.width), ("height", spec.height)):
        if side % unit:
            better = max(unit, round(side / unit) * unit)
            raise BadInput(name, side, f"is not a multiple of {unit}, which {spec.model} needs; use {better}")


def _check_closes(name: str, pixels: int, wraps: bool, info: ModelInfo) -> None:
    """An axis that wraps needs at least half the native size."""
    least = info.native_size // 2
    if wraps and pixels < least:
        raise BadInput(
            name,
            pixels,
            f"is too short to wrap for a model of {info.native_size} px; use a multiple of 8 from {least} px "
            f"on, or do not wrap it",
        )


def _check_cost(spec: Spec, info: ModelInfo) -> None:
    """Refuse what would take very long to plan, before anything is planned."""
    height, width = spec.height // info.scale_factor, spec.width // info.scale_factor
    native = info.native_size // info.scale_factor
    grid = _grid(height, width, native, None, spec.blend == "shift", (spec.wrap_y, spec.wrap_x))
    share = min(MAX_LATENTS / (height * width), MAX_WINDOWS / grid.windows)
    if share < 1:
        side = max(("width", spec.width), ("height", spec.height), key=itemgetter(1))
        made = f"makes an image of {spec.width}x{spec.height} px, {height * width:,} latents and"
        limit = (
            f"{grid.windows:,} windows of this model, above the limit of {MAX_LATENTS:,} or {MAX_WINDOWS:,}"
        )
        raise BadInput(*side, f"{made} {limit}; use e.g. {_smaller(spec, share)}")
    if len(spec.boxes) > MAX_REGIONS:
        raise BadInput("boxes", len(spec.boxes), f"regions are too many; use at most {MAX_REGIONS}")
    windows = grid.windows + sum(patch.grid.windows for patch in _patches(spec, height, width, native, None))
    if windows > MAX_WINDOWS:
        fix = (
            f"regions make {windows:,} windows, above the limit of {MAX_WINDOWS:,}; use fewer or smaller ones"
        )
        raise BadInput("boxes", len(spec.boxes), fix)


def _smaller(spec: Spec, share: float) -> str:
    """A size that keeps to a limit of so much of the area."""
    # A little less than the share, since windows come in whole rows.
    width, height = (
        max(8, int(side * math.sqrt(0.9 * share)) // 8 * 8) for side in (spec.width, spec.height)
    )
    return f"{width}x{height}"


def _check_parts(name: str, parts: int, lengths: tuple[int, ...], pixel: int) -> None:
    """A side of a tile set's canvas divides evenly into tiles at every stage, each of two latents or more."""
    if all(length % (parts * pixel) == 0 and length >= 2 * parts * pixel for length in lengths):
        return
    unit = parts * pixel << (len(lengths) - 1)
    better = max(2 if lengths[0] < 2 * parts * pixel else 1, round(lengths[-1] / unit)) * unit
    raise BadInput(
        name, lengths[-1], f"does not divide into {parts} equal tiles at every stage; use e.g. {better}"
    )


def _sizes(spec: Spec, info: ModelInfo) -> list[tuple[int, int]]:
    native, pixel = info.native_size, info.scale_factor
    side = math.sqrt(spec.width * spec.height)
    # The first stage has between half and twice the native area.
    halvings = max(0, math.ceil(math.log2(side / native) - 0.5))
    if spec.source is not None and _is_enlarged(spec.source):
        halvings = max(0, math.ceil(math.log2(spec.source.enlarging) - 0.5) - 1)
    # The short side of a very long image stays above half the native size: the model was not trained on
    # smaller ones, and a row of windows gives a better image.
    while halvings and min(spec.width, spec.height) / 2**halvings < native / 2:
        halvings -= 1
    sizes = []
    for power in range(halvings, -1, -1):
        width, height = (
            max(pixel, round(side / 2**power / pixel) * pixel) for side in (spec.width, spec.height)
        )
        sizes.append((width, height))
    if spec.kept is not None:
        sizes[:1] = sizes[:1] * PAINTING_STAGES
    return sizes


def _is_enlarged(source: SourceImage | None) -> bool:
    """Whether the image is the init image made larger; with kept pixels it is a new one around them."""
    return source is not None and not source.keeps and source.enlarging >= ENLARGED


def is_guided(spec: Spec, info: ModelInfo) -> bool:
    """Whether a window has two evaluations, with the prompt and without it."""
    return spec.guidance(info) > info.guided_above and not info.takes_guidance


def _stage(spec: Spec, info: ModelInfo, index: int, width: int, height: int) -> Stage:
    latent_width, latent_height = width // info.scale_factor, height // info.scale_factor
    native = info.native_size // info.scale_factor
    longest = None if info.longest_window is None else info.longest_window // info.scale_factor
    moving = spec.blend == "shift"
    grid = _grid(latent_height, latent_width, native, longest, moving, (spec.wrap_y, spec.wrap_x))
    passes = 2 if is_guided(spec, info) else 1
    first_step = spec.steps - max(1, round(spec.steps * _strength(spec, index)))
    return Stage(
        index=index,
        width=width,
        height=height,
        first_step=first_step,
        steps=spec.steps,
        batch=_batch(spec, grid, passes, native, is_whole=(width, height) == (spec.width, spec.height)),
        grid=grid,
        most_joined=_most_joined(spec, native),
        passes=passes,
        patches=_patches(spec, latent_height, latent_width, native, longest),
        dilation=dilation_of(grid, native) if spec.dilated else None,
        tile_set_layout=spec.tile_set_layout,
    )


def _strength(spec: Spec, index: int) -> float:
    """How far a stage is noised; 1 starts from pure noise."""
    if index == 0 and spec.init is None:
        return 1.0
    if spec.kept is not None and index < PAINTING_STAGES:
        painted = spec.repaint if spec.kept.stands_free else min(CONTINUING, spec.repaint)
        return painted if index == 0 else max(spec.strength, min(SECOND_PAINTING, painted))
    return spec.strength


def _batch(spec: Spec, grid: Grid, passes: int, native: int, is_whole: bool) -> int:
    """Evaluations per call, the same for any number of ranks; each rank pads its last call.

    An image of one window has calls of its `window_batch`, which images of a batch share. A small window by
    itself is one call, with and without the prompt: alone, an evaluation would not use a processor well. Else
    it is what costs least.
    """
    evaluations, most = grid.windows * passes, _max_windows_per_call(spec, native)
    paired = grid.rows.window * grid.cols.window % PAIRED_LATENTS == 0

    def cost(batch: int) -> int:
        calls = (ranks * _ceil_div(_ceil_div(evaluations, ranks), batch) for ranks in COUNTED_RANKS)
        return sum(calls) * (batch + CALL_COST)

    if grid.windows == 1:
        if is_whole and spec.window_batch is not None:
            return most if paired or most == 1 else most // 2 * 2
        if _windows_that_fit(native) >= MAX_WINDOWS_PER_CALL:
            return min(passes, most)
    return min((each for each in range(1, most + 1) if paired or each == 1 or each % 2 == 0), key=cost)


def _ceil_div(whole: int, part: int) -> int:
    return -(-whole // part)


def _max_windows_per_call(spec: Spec, native: int) -> int:
    if spec.window_batch is not None:
        return spec.window_batch
    return min(MAX_WINDOWS_PER_CALL, _windows_that_fit(native))


def _most_joined(spec: Spec, native: int) -> int:
    return spec.window_batch or min(MAX_JOINED, _windows_that_fit(native))


def _windows_that_fit(native: int) -> int:
    return max(MIN_WINDOWS_PER_CALL, LATENTS_PER_CALL // (native * native))


def _grid(
    height: int, width: int, native: int, longest: int | None, moving: bool, wraps: tuple[bool, bool]
) -> Grid:
    # A canvas of about native area is one window of its own shape, as a stock pipeline renders it.
    whole = width * height <= 2 * native * native and max(width, height) <= (longest or max(width, height))
    window_width = width if whole else min(native, width)
    window_height = height if whole else min(native, height)
    return Grid(
        rows=_axis(height, window_height, moving, wraps[0]), cols=_axis(width, window_width, moving, wraps[1])
    )


def _patches(spec: Spec, height: int, width: int, native: int, longest: int | None) -> tuple[Layer, ...]:
    """The region prompts that are large enough; each is a layer of windows of its own."""
    areas = ((text, region_area(box, height, width)) for text, box in enumerate(spec.boxes, start=1))
    return tuple(
        Layer(
            grid=_grid(
                area.height,
                area.width,
                native,
                longest,
                spec.blend == "shift",
                # A region that spans an axis that wraps is periodic too; any other has two ends.
                (spec.wrap_y and area.height == height, spec.wrap_x and area.width == width),
            ),
            y=area.y,
            x=area.x,
            text=text,
        )
        for text, area in areas
        if min(area.height, area.width) >= native / MIN_BOX_SHARE
    )


def _axis(length: int, window: int, moving: bool, wraps: bool) -> Axis:
    share = SHIFT_SHARE if moving else OVERLAP_SHARE
    # A periodic axis of one window's length has two of them, so that each covers the other's ends.
    overlap = window // 2 if wraps else 0
    if window < length:
        overlap = min(max(1, window // share), window - 1)
    return Axis(length=length, window=window, overlap=overlap, moving=moving, wraps=wraps)
