"""From one stage of the cascade to the next: start from noise, or from the finished stage below.

A stage above the first decodes the one below, enlarges its pixels, encodes them again and noises them to
the spec's strength (SDEdit, Meng et al. 2022; DemoFusion, Du et al. 2024, enlarges latents instead). The plan
lays the work out in tiles (`render.plan.enlarge_layout`); the ranks make one each in a round, and each keeps
what it needs of the tiles that are gathered. An init image stands in for the stage below the first one.
Above it, only the difference from the init image is enlarged, and the image's own detail, which the stage
below was too small for, is added again (a Laplacian pyramid, Burt and Adelson 1983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from render.canvas import Canvas, LatentRegion, cut_out
from render.denoise.layered import decode_layered, encode_layered
from render.denoise.network_enlarging import NetworkEnlarging
from render.denoise.resampling import sample
from render.distributed import AllGatherHandle, Group
from render.finite import check_autoencoder
from render.guidance.color_correction import color_means, color_plane, decode_region
from render.guidance.kept_pixels import put_over, read_pixels, shares
from render.guidance.product_edge import without_fringe
from render.models.adapter import Adapter
from render.models.autoencoders.tile_store import TileStore
from render.models.enlarger import Enlarger
from render.plan.enlarge_layout import EnlargeLayout
from render.plan.geometry import Rect
from render.plan.plan import StagePlan
from render.plan.stages import Stage
from render.plan.topology import Topology, topology_of
from render.sampling.noise import INITIAL, stage_noise
from render.sampling.schedule import NoiseSchedule
from render.spec.source_image import SourceImage

FRINGE = 2
"""Latents around what is kept in which the first stage's picture shows some of it."""
Pixels = Callable[[Rect], Tensor]
"""An area of the new canvas, in its latents -> [1, 3, H, W] pixels in [0, 1] to encode there."""


def first_canvas(stage: Stage, schedule: NoiseSchedule, seed: int, channels: int, area: Rect) -> Canvas:
    """Pure noise, at the scale that the sampler starts from, in an area of the canvas."""
    noise = stage_noise(stage, seed, INITIAL, channels, area).mul_(schedule.initial_scale)
    return Canvas(step=0, planes=noise[None], area=area)


def painted_canvas(enlarged: LatentRegion, stage: Stage, schedule: NoiseSchedule, seed: int) -> Canvas:
    """Pure noise, as in `first_canvas`, with the source's latents and colors beside it."""
    channels, area = len(enlarged.latents), enlarged.area
    noise = stage_noise(stage, seed, INITIAL, channels, area).mul_(schedule.initial_scale)
    assert enlarged.colors is not None, "a reference has colors"
    planes = torch.stack([noise, enlarged.latents, enlarged.colors])
    return Canvas(step=0, planes=planes, area=area, has_reference=True)


def next_canvas(
    enlarged: LatentRegion, stage: Stage, schedule: NoiseSchedule, seed: int, *, has_reference: bool = False
) -> Canvas:
    """Enlarged latents of the stage below, noised to the stage's first step.

    With `has_reference` the latents before the noise, and the region's colors, stay beside them.
    """
    noise = stage_noise(stage, seed, INITIAL, len(enlarged.latents), enlarged.area)
    level = schedule.level(stage.first_step)
    kept = enlarged.latents if level.alpha == 1.0 else enlarged.latents * level.alpha
    noised = noise.mul_(level.sigma).add_(kept)
    planes = [noised]
    if has_reference:
        assert enlarged.colors is not None, "a reference has colors"
        planes += [enlarged.latents, enlarged.colors]
    return Canvas(
        step=stage.first_step,
        planes=torch.stack(planes),
        area=enlarged.area,
        has_reference=has_reference,
    )


def pixels_of_previous_stage(
    below: LatentRegion,
    plan: StagePlan,
    adapter: Adapter,
    group: Group,
    device: torch.device,
    source: SourceImage | None = None,
    enlarger: Enlarger | None = None,
) -> Pixels:
    """The stage below, decoded and enlarged, with the detail of `source` where that is given.

    `enlarger` does it where the plan says so.

    `below` holds at least `plan.enlarging.decoded_by` this rank. All ranks must call it.
    """
    layout = plan.enlarging
    if layout.layered:
        whole = below.canvas.whole if plan.stage.paints else layout.source_of(group.rank)
        decoded = _decoded_layered(below, whole, layout, adapter, group, device)
    else:
        decoded = partial(_decoded, below, adapter, device)
    enlarged: Pixels = partial(_enlarged_pixels, decoded, layout=layout, device=device)
    if layout.network:
        assert enlarger is not None, "the plan has a network"
        enlarged = NetworkEnlarging(enlarger, layout, decoded)
    kept, canvas, pixel = below.kept, plan.enlarging.canvas, adapter.info.scale_factor
    if kept is not None:
        if plan.stage.paints and kept.stands_free:
            return partial(_repainted_pixels, enlarged, kept, canvas, pixel)
        return lambda area: put_over(enlarged(area).clamp_(0.0, 1.0), kept, canvas, pixel, area)
    if source is None:
        return lambda area: enlarged(area).clamp_(0.0, 1.0)
    given = pixels_of_init_image(source, plan)
    differing = partial(_enlarged_pixels, decoded, layout=layout, device=device, source=source)
    return lambda area: (differing(area) + given(area).to(device)).clamp_(0.0, 1.0)


def pixels_of_init_image(source: SourceImage, plan: StagePlan, enlarger: Enlarger | None = None) -> Pixels:
    """The init image at the stage's size; a smaller one is made larger by `enlarger` where that is given."""
    stage, pixel = plan.stage, plan.info.scale_factor
    if enlarger is None or source.has_detail_for(stage.width):
        return partial(_given_pixels, source, topology_of(stage.grid), pixel)
    layout = plan.enlarging_init(source, enlarger.scale)
    assert layout.below is not None, "the init image is below"
    enlarged = NetworkEnlarging(enlarger, layout, partial(_given_pixels, source, layout.below, 1))
    return lambda area: enlarged(_in_pixels(area, pixel))


def enlarge(
    pixels: Pixels,
    plan: StagePlan,
    adapter: Adapter,
    group: Group,
    device: torch.device,
    area: Rect,
    color_strength: Tensor | None = None,
) -> LatentRegion:
    """The rank's `area` of the new canvas, on the host, encoded from `pixels`.

    With `color_strength` [area.height, area.width] the region carries the pixels' colors, to be kept by this
    strength. `plan` is that of the group's world size. All ranks must call it; their areas may differ.
    """
    layout = plan.enlarging
    if not layout.layered:
        return _gathered_canvas(
            lambda tile: _encoded(pixels, tile, layout, adapter),
            plan,
            adapter,
            group,
            device,
            area,
            color_strength,
        )
    with TileStore(device) as store:
        encoded = encode_layered(pixels, layout.encoded_grid, adapter, group, store)
        return _gathered_canvas(encoded, plan, adapter, group, device, area, color_strength)


def _gathered_canvas(
    encoded: Callable[[Rect], Tensor],
    plan: StagePlan,
    adapter: Adapter,
    group: Group,
    device: torch.device,
    area: Rect,
    color_strength: Tensor | None,
) -> LatentRegion:
    """See `enlarge`; `encoded` gives [C + 3, tile.height, tile.width] of a tile of this rank's."""
    layout, stage = plan.enlarging, plan.stage
    tiles = [layout.tiles_of(rank) for rank in range(group.world_size)]
    own, canvas = tiles[group.rank], layout.canvas
    channels = adapter.info.latent_channels + 3
    fresh = torch.empty((channels, area.height, area.width))
    classes = stage.latent_classes
    firsts = torch.empty((channels, 0 if classes is None else len(classes.firsts)))

    def message(number: int) -> Tensor:
        block = torch.zeros((channels, *layout.tile_shape), device=device)
        if number < len(own):
            tile = own[number]
            made = encoded(tile)
            check_autoencoder(made, f"when it began stage {stage.index}")
            block[:, : tile.height, : tile.width] = made
        return block

    # In rounds of one tile from each rank, so that no rank holds more than two of them beside its own area.
    for number, messages in enumerate(_gathered(group, map(message, range(layout.rounds)))):
        for theirs, made in zip(tiles, messages, strict=True):
            if number < len(theirs):
                tile = theirs[number]
                for there, here in canvas.intersect(tile, area):
                    fresh[:, *here] = made[:, *there]
                if classes is not None:
                    near, places = canvas.inside(classes.firsts, tile)
                    firsts[:, near] = made[:, places // tile.width, places % tile.width]
    if classes is not None:
        members, numbers = (torch.from_numpy(each) for each in classes.inside(canvas, area))
        fresh.flatten(1)[:, members] = firsts[:, numbers]
    colors = None if color_strength is None else color_plane(fresh[-3:], color_strength, len(fresh) - 3)
    return LatentRegion(latents=fresh[:-3], area=area, canvas=canvas, colors=colors)


def _gathered(group: Group, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    """[world_size, *block.shape] on the host for each of this rank's blocks, which are as many on all ranks:
    each crosses while the next one is made."""
    handle: AllGatherHandle | None = None
    for block in blocks:
        if handle is not None:
            yield handle.wait().cpu()
        handle = group.all_gather(block)
    if handle is not None:
        yield handle.wait().cpu()


def _encoded(pixels: Pixels, tile: Rect, layout: EnlargeLayout, adapter: Adapter) -> Tensor:
    """New latents and colors [C + 3, tile.height, tile.width] of one tile."""
    padded = layout.padded(tile)
    picture = pixels(padded)
    fresh = torch.cat([adapter.encode(picture)[0], color_means(picture, adapter.info.scale_factor)])
    top, left = tile.y - padded.y, tile.x - padded.x
    return fresh[:, top : top + tile.height, left : left + tile.width]


def _repainted_pixels(
    enlarged: Pixels, kept: SourceImage, canvas: Topology, pixel: int, area: Rect
) -> Tensor:
    """[1, 3, H, W] pixels of an area of the canvas: what is kept, put over a picture without it."""
    margin = canvas.pad(area, FRINGE * 3)
    weight = shares(read_pixels(kept.kept, canvas, pixel, margin)[:, 3:])
    painted = enlarged(margin).clamp_(0.0, 1.0)
    bare = without_fringe(painted, weight.to(painted.device), FRINGE * pixel)
    top, left = (area.y - margin.y) * pixel, (area.x - margin.x) * pixel
    cut = bare[:, :, top : top + area.height * pixel, left : left + area.width * pixel]
    return put_over(cut, kept, canvas, pixel, area)


def _given_pixels(source: SourceImage, canvas: Topology, pixel: int, area: Rect) -> Tensor:
    """[1, 3, H, W] pixels in [0, 1] of a rectangle of the canvas (in latents), from the init image on it."""
    return shares(read_pixels(source.pixels, canvas, pixel, area))


def _decoded(below: LatentRegion, adapter: Adapter, device: torch.device, area: Rect) -> Tensor:
    """[1, 3, H, W] pixels of an area of the stage below."""
    return decode_region(below, area, adapter, device)


def _decoded_layered(
    below: LatentRegion,
    source: Rect,
    layout: EnlargeLayout,
    adapter: Adapter,
    group: Group,
    device: torch.device,
) -> Pixels:
    """The same, of a stage that is decoded as a whole, inside of `source`. All ranks must call it."""
    pixel = layout.scale_factor
    with TileStore(device) as store:
        picture = decode_layered(adapter, below, layout.decoded_grid, group, store).gather(source)
    canvas = replace(below.canvas, height=below.canvas.height * pixel, width=below.canvas.width * pixel)
    held = _in_pixels(source, pixel)
    return lambda area: cut_out(picture, held, _in_pixels(area, pixel), canvas).to(device)


def _in_pixels(area: Rect, pixel: int) -> Rect:
    return Rect(y=area.y * pixel, x=area.x * pixel, height=area.height * pixel, width=area.width * pixel)


def _enlarged_pixels(
    decoded: Pixels,
    area: Rect,
    *,
    layout: EnlargeLayout,
    device: torch.device,
    source: SourceImage | None = None,
) -> Tensor:
    """[1, 3, H, W] pixels of an area of the new canvas (in its latents), from the stage below; with a
    source, by how much they differ from it."""
    pixel, below = layout.scale_factor, layout.below
    assert below is not None, "there is a stage below"
    read = layout.source(area)
    picture = decoded(read)
    if source is not None:
        picture = picture - _given_pixels(source, below, pixel, read).to(device)
    return sample(picture, read, area, layout)
