"""The stages of the cascade: from the model's native size, where the composition is decided, to the image."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

from render.errors import BadInput
from render.model_info import ModelInfo
from render.plan.dilation import Dilation, dilation_of
from render.plan.geometry import Axis, Grid, Layer
from render.plan.latent_classes import LatentClasses, make_latent_classes
from render.plan.region_prompts import region_area
from render.plan.tiling import Tiling
from render.spec import LEARNED, POOLED, Spec
from render.spec.init_image import InitImage
from render.spec.tile_set import TileSetLayout

OVERLAP_SHARE = 4
"""`overlap` blend: a quarter of a window is shared with the next one."""
SHIFT_SHARE = 16
"""`shift` blend: a sixteenth is, just enough for a soft edge."""

ENLARGED = math.sqrt(2)
"""From this factor on a picture to start from is enlarged rather than painted anew."""
LEAST_BOX_SHARE = 4
"""A box shows from the stage on where its shorter side is a quarter of a window: no model composes less."""
LATENTS_PER_CALL = 4 * 64 * 64
FEWEST_IN_CALL, MOST_IN_CALL = 4, 16
"""A model call takes in about so many latents, in so many windows: small windows keep a processor busy only
together, large ones fill its memory."""
CALL_COST = 1
"""What a model call costs beside its evaluations, in evaluations: from 2 for the built-in model to a fraction
for large ones."""
PAIRED_LATENTS = 2 * 64
"""A window of a multiple of so many latents is an even number of cells in a network's deepest layer. The last
of an odd number of rows is rounded otherwise by a matrix product, and another window is last on other ranks:
so windows of other shapes go one by one, or in even numbers."""
COUNTED_RANKS = (1, 2, 4, 8)
"""Numbers of ranks that a batch should suit, even in the first, smallest stage."""


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
    """Evaluations per model call."""
    grid: Grid
    passes: int = 1
    """Evaluations of each window: 2 with classifier-free guidance, without and with the prompt."""
    patches: tuple[Layer, ...] = ()
    """The spec's boxes that are large enough at this stage; `text` is 1 for the first one."""
    dilation: Dilation | None = None
    """The views of the whole that guide the windows; None where the spec asks for none or there are none."""
    tile_set_layout: TileSetLayout | None = None
    """The tiles that the canvas is a sheet of."""
    enlarges: bool = False
    """It starts from something smaller, and may be held to that."""
    composes: frozenset[int] = frozenset()
    """The `text` of the patches that begin here: nothing below shows what they are to show."""

    @property
    def view_batch(self) -> int:
        """Evaluations per model call of the dilated views, whose shape may be any."""
        return self.batch + self.batch % 2

    @property
    def latent_classes(self) -> LatentClasses | None:
        """The latents that are equal because sides of tiles are; None where there are none."""
        ties = None if self.tile_set_layout is None else make_latent_classes(self.tile_set_layout, self.grid)
        return ties if ties is not None and len(ties.places) else None

    def tiling(self, world_size: int) -> Tiling:
        """The stage dealt out to a number of ranks."""
        return Tiling(grid=self.grid, world_size=world_size, passes=self.passes, patches=self.patches)

    def offset(self, seed: int, step: int) -> tuple[int, int]:
        """Where the grid stands at a step: a function of (seed, stage, step) alone."""
        rows, cols = self.grid.rows.offsets, self.grid.cols.offsets
        if rows == cols == 1:
            return 0, 0
        draw = hashlib.sha256(f"{seed}/{self.index}/{step}".encode()).digest()
        return int.from_bytes(draw[:8], "big") % rows, int.from_bytes(draw[8:16], "big") % cols


def make_stages(spec: Spec, info: ModelInfo) -> tuple[Stage, ...]:
    """Sizes halve from the image's own size down to the model's native area, in multiples of a latent.

    Where a picture is to be enlarged, they halve down to its size instead: it stands for the stages below,
    so that what it shows is kept. One that keeps its size is painted anew from the native size upwards,
    since windows of a large picture know too little of it to agree on something new.

    Raises `BadInput` when the spec asks for what the model cannot do, and for a picture that is to wrap and
    is too short for windows to stand around it.
    """
    if spec.cross_attention and not info.token_width:
        raise BadInput(
            "cross_attention",
            spec.cross_attention,
            f"needs a model that attends to itself in its middle, which {spec.model} does not; set it to 0",
        )
    if spec.cross_attention and spec.cross_attention_form == LEARNED and not info.has_cross_window_attention:
        raise BadInput(
            "cross_attention_form",
            spec.cross_attention_form,
            f"needs a model with a trained listener, which {spec.model} does not bring; use {POOLED}",
        )
    _check_closes("height", spec.height, spec.wrap_y, info)
    _check_closes("width", spec.width, spec.wrap_x, info)
    sizes = _sizes(spec, info)
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
        below = index > 0 or (spec.init is not None and _enlarging(spec, spec.init) >= ENLARGED)
        stages.append(replace(stage, enlarges=below, composes=texts - begun))
        begun = texts
    return tuple(stages)


def _check_closes(name: str, pixels: int, wraps: bool, info: ModelInfo) -> None:
    """A window wraps around no less than half of what the model knows; any length from there on closes."""
    least = info.native_size // 2
    if wraps and pixels < least:
        raise BadInput(
            name,
            pixels,
            f"is too short for windows of {info.native_size} px to close around it; use any multiple of 8 "
            f"from {least} px on, or do not wrap it",
        )


def _check_parts(name: str, parts: int, lengths: tuple[int, ...], pixel: int) -> None:
    """A side of the sheet parts evenly into tiles at every stage, each of two latents or more."""
    if all(length % (parts * pixel) == 0 and length >= 2 * parts * pixel for length in lengths):
        return
    unit = parts * pixel << (len(lengths) - 1)
    better = max(2 if lengths[0] < 2 * parts * pixel else 1, round(lengths[-1] / unit)) * unit
    raise BadInput(
        name, lengths[-1], f"does not part into {parts} equal tiles at every stage; use e.g. {better}"
    )


def _sizes(spec: Spec, info: ModelInfo) -> list[tuple[int, int]]:
    native, pixel = info.native_size, info.scale_factor
    side = math.sqrt(spec.width * spec.height)
    # Half a halving too many would make the first stage half the native area; rounded down, it is twice.
    halvings = max(0, math.ceil(math.log2(side / native) - 0.5))
    enlarging = 1.0 if spec.init is None else _enlarging(spec, spec.init)
    if enlarging >= ENLARGED:
        halvings = max(0, math.ceil(math.log2(enlarging) - 0.5) - 1)
    # A very long picture is not squeezed until its short side is below half the native size: the model
    # has never seen such pictures, and a row of windows serves it better.
    while halvings and min(spec.width, spec.height) / 2**halvings < native / 2:
        halvings -= 1
    sizes = []
    for power in range(halvings, -1, -1):
        width, height = (
            max(pixel, round(side / 2**power / pixel) * pixel) for side in (spec.width, spec.height)
        )
        sizes.append((width, height))
    return sizes


def _enlarging(spec: Spec, init: InitImage) -> float:
    """How many times the side of the picture to start from the image's is."""
    return math.sqrt(spec.width * spec.height / (init.width * init.height))


def _stage(spec: Spec, info: ModelInfo, index: int, width: int, height: int) -> Stage:
    latent_width, latent_height = width // info.scale_factor, height // info.scale_factor
    native = info.native_size // info.scale_factor
    grid = _grid(latent_height, latent_width, native, spec.blend == "shift", (spec.wrap_y, spec.wrap_x))
    passes = 2 if spec.guidance(info) > 1 and not info.takes_guidance else 1
    from_noise = index == 0 and spec.init is None
    first_step = 0 if from_noise else spec.steps - max(1, round(spec.steps * spec.strength))
    return Stage(
        index=index,
        width=width,
        height=height,
        first_step=first_step,
        steps=spec.steps,
        batch=_batch(grid, passes, _most_in_call(spec, native)),
        grid=grid,
        passes=passes,
        patches=_patches(spec, latent_height, latent_width, native),
        dilation=dilation_of(grid, native) if spec.dilated else None,
        tile_set_layout=spec.tile_set_layout,
    )


def _batch(grid: Grid, passes: int, most: int) -> int:
    """The batch that wastes least: one for any number of ranks, each of which fills up its last call."""
    evaluations = grid.windows * passes

    def cost(batch: int) -> int:
        calls = (ranks * _parts(_parts(evaluations, ranks), batch) for ranks in COUNTED_RANKS)
        return sum(calls) * (batch + CALL_COST)

    paired = grid.rows.window * grid.cols.window % PAIRED_LATENTS == 0
    return min((each for each in range(1, most + 1) if paired or each == 1 or each % 2 == 0), key=cost)


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _most_in_call(spec: Spec, native: int) -> int:
    if spec.window_batch is not None:
        return spec.window_batch
    return min(MOST_IN_CALL, max(FEWEST_IN_CALL, LATENTS_PER_CALL // (native * native)))


def _grid(height: int, width: int, native: int, moving: bool, wraps: tuple[bool, bool]) -> Grid:
    # A canvas of about native area is one window of its own shape, as a pipeline would render it.
    whole = width * height <= 2 * native * native
    window_width = width if whole else min(native, width)
    window_height = height if whole else min(native, height)
    return Grid(
        rows=_axis(height, window_height, moving, wraps[0]), cols=_axis(width, window_width, moving, wraps[1])
    )


def _patches(spec: Spec, height: int, width: int, native: int) -> tuple[Layer, ...]:
    """A box's composition starts at the first stage where its shorter side is a share of a window."""
    areas = ((text, region_area(box, height, width)) for text, box in enumerate(spec.boxes, start=1))
    return tuple(
        Layer(
            grid=_grid(
                area.height,
                area.width,
                native,
                spec.blend == "shift",
                # A box that goes all the way around is a ring too; any other has two ends.
                (spec.wrap_y and area.height == height, spec.wrap_x and area.width == width),
            ),
            y=area.y,
            x=area.x,
            text=text,
        )
        for text, area in areas
        if min(area.height, area.width) >= native / LEAST_BOX_SHARE
    )


def _axis(length: int, window: int, moving: bool, wraps: bool) -> Axis:
    share = SHIFT_SHARE if moving else OVERLAP_SHARE
    # Around a ring that is one window long stand two of them, so that each covers the other's ends.
    overlap = window // 2 if wraps else 0
    if window < length:
        overlap = min(max(1, window // share), window - 1)
    return Axis(length=length, window=window, overlap=overlap, moving=moving, wraps=wraps)
