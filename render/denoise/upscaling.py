"""From one stage of the cascade to the next: start from noise, or from the finished stage below.

A stage above the first decodes the one below, enlarges its pixels, encodes them again and noises them to
the spec's strength (SDEdit, Meng et al. 2022; DemoFusion, Du et al. 2024, does the like on latents). The
work is laid out in refinement tiles by the spec; ranks take turns, and what they make is gathered tile by
tile, each rank keeping what it holds of the new canvas. A picture that the spec gives to start from stands
in for the stage below the first one. Later stages carry over what was changed, not what was there: the
picture's own detail, which the stage below could not hold, is put back (a Laplacian pyramid, Burt and
Adelson 1983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from render.canvas import Canvas, LatentRegion
from render.distributed import AllGatherHandle, Group
from render.guidance.color_correction import colour_plane, decoded, means
from render.guidance.shared_latents import shared_latents_in, stage_noise
from render.model_info import ModelInfo
from render.models.adapter import Adapter
from render.plan.geometry import Grid, Rect
from render.plan.stages import Stage
from render.plan.topology import Topology, topology_of
from render.sampling.noise import INITIAL
from render.sampling.schedule import NoiseSchedule
from render.spec.init_image import InitImage

Pixels = Callable[[Rect], Tensor]
"""An area of the new canvas, in its latents -> [1, 3, H, W] pixels in [0, 1] to encode there."""
_REFINE_TILE, _LARGE_CANVAS = 64, 256
"""Longest side of a refinement tile on the new canvas, in latents; twice that on a canvas longer than a large
one, since the halo around a tile is made twice. Small canvases are cut in four."""
_BICUBIC_REACH = 3
"""InitPicture pixels around a point that a bicubic kernel reads, and one to spare."""


def first_canvas(stage: Stage, schedule: NoiseSchedule, seed: int, channels: int, area: Rect) -> Canvas:
    """Pure noise, at the scale that the sampler starts from, in an area of the canvas."""
    noise = stage_noise(stage, seed, INITIAL, channels, area).mul_(schedule.initial_scale)
    return Canvas(step=0, planes=noise[None], area=area)


def next_canvas(
    enlarged: LatentRegion, stage: Stage, schedule: NoiseSchedule, seed: int, *, anchored: bool = False
) -> Canvas:
    """Enlarged latents of the stage below, noised to the stage's first step; `anchored` to them and to the
    piece's colours."""
    noise = stage_noise(stage, seed, INITIAL, len(enlarged.latents), enlarged.area)
    noised = noise.mul_(schedule.sigmas[stage.first_step]).add_(enlarged.latents)
    planes = [noised]
    if anchored:
        assert enlarged.colours is not None, "an anchor has colours"
        planes += [enlarged.latents, enlarged.colours]
    return Canvas(step=stage.first_step, planes=torch.stack(planes), area=enlarged.area, anchored=anchored)


def area_to_enlarge(below: Grid, stage: Stage, info: ModelInfo, group: Group) -> Rect:
    """What a rank reads of the stage below to do its share of `enlarge`."""
    surface = topology_of(below)
    return surface.bounding_rect(
        _source(surface, _with_halo(tile, stage, info), stage, info)
        for tile in _share(stage, info, group, group.rank)
    )


def pixels_of_previous_stage(
    below: LatentRegion, stage: Stage, adapter: Adapter, device: torch.device, source: InitImage | None = None
) -> Pixels:
    """The stage below, decoded and enlarged, with the detail of `source` where that is given.

    `below` holds at least `area_to_enlarge`.
    """
    enlarged = partial(_enlarged_pixels, below, stage=stage, adapter=adapter, device=device)
    if source is None:
        return lambda wide: enlarged(wide).clamp_(0.0, 1.0)
    given = pixels_of_init_image(source, stage)
    return lambda wide: (enlarged(wide, source=source) + given(wide).to(device)).clamp_(0.0, 1.0)


def pixels_of_init_image(source: InitImage, stage: Stage) -> Pixels:
    """The picture that the spec gives to start from, at the stage's size."""

    return partial(_given_pixels, source, topology_of(stage.grid), stage.width // stage.grid.width)


def enlarge(
    pixels: Pixels,
    stage: Stage,
    adapter: Adapter,
    group: Group,
    device: torch.device,
    area: Rect,
    colour_share: Tensor | None = None,
) -> LatentRegion:
    """The rank's `area` of the new canvas, on the host, encoded from `pixels`, with their colours where a
    share of these is kept, [area.height, area.width].

    All ranks must call it; their areas may differ.
    """
    shares = [_share(stage, adapter.info, group, rank) for rank in range(group.world_size)]
    mine, surface = shares[group.rank], topology_of(stage.grid)
    channels, side = adapter.info.latent_channels + 3, _refine_side(stage)
    fresh = torch.empty((channels, area.height, area.width))
    ties = stage.latent_classes
    firsts = torch.empty((channels, 0 if ties is None else len(ties.firsts)))

    def message(turn: int) -> Tensor:
        block = torch.zeros((channels, *side), device=device)
        if turn < len(mine):
            tile = mine[turn]
            block[:, : tile.height, : tile.width] = _refined(pixels, tile, stage, adapter)
        return block

    # In turns of one tile from each rank, so that nobody holds more than two of them beside its own area.
    turns = -(-len(_refine_tiles(stage)) // group.world_size)
    for turn, messages in enumerate(_gathered(group, map(message, range(turns)))):
        for theirs, made in zip(shares, messages, strict=True):
            if turn < len(theirs):
                for there, here in surface.intersect(theirs[turn], area):
                    fresh[:, *here] = made[:, *there]
                if ties is not None:
                    near, places = surface.inside(ties.firsts, theirs[turn])
                    firsts[:, near] = made[:, places // theirs[turn].width, places % theirs[turn].width]
    if ties is not None:
        tied = shared_latents_in(stage, area)
        fresh.flatten(1)[:, tied.places] = firsts[:, tied.classes]
    colours = None if colour_share is None else colour_plane(fresh[-3:], colour_share, len(fresh) - 3)
    return LatentRegion(latents=fresh[:-3], area=area, canvas=surface, colours=colours)


def _gathered(group: Group, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    """[world_size, *block.shape] on the host for each of this rank's blocks, which are as many on all ranks:
    each crosses while the next one is made."""
    gathering: AllGatherHandle | None = None
    for block in blocks:
        if gathering is not None:
            yield gathering.wait().cpu()
        gathering = group.all_gather(block)
    if gathering is not None:
        yield gathering.wait().cpu()


def _refine_side(stage: Stage) -> tuple[int, int]:
    height, width = stage.grid.height, stage.grid.width
    longest = _REFINE_TILE if max(height, width) <= _LARGE_CANVAS else 2 * _REFINE_TILE
    return min(longest, -(-height // 2)), min(longest, -(-width // 2))


def _refine_tiles(stage: Stage) -> list[Rect]:
    height, width = stage.grid.height, stage.grid.width
    tall, wide = _refine_side(stage)
    return [
        Rect(y=y, x=x, height=min(tall, height - y), width=min(wide, width - x))
        for y in range(0, height, tall)
        for x in range(0, width, wide)
    ]


def _share(stage: Stage, info: ModelInfo, group: Group, rank: int) -> list[Rect]:
    """The refinement tiles of a rank: an unbroken run of them.

    The largest first, halo and all: ranks wait for each other's turns, which are of one size then.
    """
    tiles = _refine_tiles(stage)
    each = -(-len(tiles) // group.world_size)
    own = tiles[rank * each : (rank + 1) * each]
    return sorted(own, key=lambda tile: _with_halo(tile, stage, info).area, reverse=True)


def _with_halo(tile: Rect, stage: Stage, info: ModelInfo) -> Rect:
    return topology_of(stage.grid).pad(tile, info.decode_halo)


def _refined(pixels: Pixels, tile: Rect, stage: Stage, adapter: Adapter) -> Tensor:
    """New latents and colours [C + 3, tile.height, tile.width] of one refinement tile."""
    wide = _with_halo(tile, stage, adapter.info)
    picture = pixels(wide)
    fresh = torch.cat([adapter.encode(picture)[0], means(picture, adapter.info.scale_factor)])
    top, left = tile.y - wide.y, tile.x - wide.x
    return fresh[:, top : top + tile.height, left : left + tile.width]


def _given_pixels(source: InitImage, canvas: Topology, pixel: int, area: Rect) -> Tensor:
    """[1, 3, H, W] pixels of a rectangle of the canvas (in latents), from a picture scaled to the canvas."""
    picture = torch.empty((1, 3, area.height * pixel, area.width * pixel))
    for there, here in canvas.intersect(area, canvas.whole):
        rows, cols = (_scaled(side, pixel) for side in here)
        part = Rect(y=rows.start, x=cols.start, height=rows.stop - rows.start, width=cols.stop - cols.start)
        size = canvas.width * pixel, canvas.height * pixel
        cut = source.pixels(part, *size, wrap_x=canvas.wrap_x, wrap_y=canvas.wrap_y)
        down, along = (_scaled(side, pixel) for side in there)
        picture[0, :, down, along] = torch.from_numpy(cut.copy()).permute(2, 0, 1).float() / 255
    return picture


def _scaled(side: slice, pixel: int) -> slice:
    return slice(side.start * pixel, side.stop * pixel)


def _enlarged_pixels(
    below: LatentRegion,
    wide: Rect,
    *,
    stage: Stage,
    adapter: Adapter,
    device: torch.device,
    source: InitImage | None = None,
) -> Tensor:
    """[1, 3, H, W] pixels of the area `wide` (in the new canvas's latents), from the stage below; with a
    source, by how much they differ from it."""
    pixel = adapter.info.scale_factor
    area = _source(below.canvas, wide, stage, adapter.info)
    picture = decoded(below, area, adapter, device)
    if source is not None:
        picture = picture - _given_pixels(source, below.canvas, pixel, area).to(device)
    y, x = _places(below.canvas, wide, stage, pixel)
    # grid_sample wants places in [-1, 1] over the decoded area's edges.
    place_y = (y - area.y * pixel + 0.5) / (area.height * pixel) * 2 - 1
    place_x = (x - area.x * pixel + 0.5) / (area.width * pixel) * 2 - 1
    places = torch.stack(torch.meshgrid(place_x, place_y, indexing="xy"), dim=-1)[None].to(device)
    return functional.grid_sample(picture, places, mode="bicubic", padding_mode="border", align_corners=False)


def _places(below: Topology, wide: Rect, stage: Stage, pixel: int) -> tuple[Tensor, Tensor]:
    """Where the centres of the pixels of `wide` lie on the picture below, in its pixels: (y, x)."""
    ratio_y, ratio_x = below.height / stage.grid.height, below.width / stage.grid.width
    y = (torch.arange(wide.height * pixel) + wide.y * pixel + 0.5) * ratio_y - 0.5
    x = (torch.arange(wide.width * pixel) + wide.x * pixel + 0.5) * ratio_x - 0.5
    return y, x


def _source(below: Topology, wide: Rect, stage: Stage, info: ModelInfo) -> Rect:
    """The latents below that the pixels of `wide` are made from; across a joined edge too."""
    y, x = _places(below, wide, stage, info.scale_factor)
    (top, bottom), (left, right) = (_latent_span(places, info.scale_factor) for places in (y, x))
    needed = Rect(y=top, x=left, height=bottom - top, width=right - left)
    return below.pad(needed, info.decode_halo)


def _latent_span(places: Tensor, pixel: int) -> tuple[int, int]:
    """The latents [first, end) whose pixels a bicubic kernel reads at these places; it may pass an edge."""
    first = (int(places[0].floor()) - _BICUBIC_REACH) // pixel
    last = (int(places[-1].ceil()) + _BICUBIC_REACH) // pixel
    return first, last + 1
