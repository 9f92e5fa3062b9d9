"""Decodes and encodes of layered autoencoders at tiny width, for `bench.autoencoders`; run by `bench.worker`.

How: `whole` is diffusers' undivided pass, `tiling` diffusers' own tiles (`enable_tiling`), `layers` this
project's tiles on all ranks of the group.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.distributed import Group
from render.models.autoencoders import open_autoencoder
from render.models.autoencoders.tile_store import TileStore
from render.models.autoencoders.tiles import TilePass
from render.plan.tile_grid import even_grid, tile_side
from render.plan.topology import Topology
from tests.render.models.autoencoders.tiny_networks import network

SCALES = {"kl": (8, 4), "flux2": (16, 16), "qwen": (8, 4), "dc": (32, 4)}
"""By kind: pixels per latent, and the canvas's channels."""


def run(
    case: dict[str, Any],
    group: Group,
    device: torch.device,
    start_peak: Callable[[], int],
    peak: Callable[[], int],
) -> dict[str, Any]:
    """Peak bytes above the loaded network, seconds, and the SHA-256 of the result, which goes to `out`."""
    kind, side = case["autoencoder"], case["side"]
    scale, channels = SCALES[kind]
    options = {"sample_size": 512} if kind in ("kl", "flux2") else {}
    vae = network(kind, **options)
    if case["how"] == "tiling":
        vae.enable_tiling()
    autoencoder = open_autoencoder(vae, device)
    canvas = Topology(height=side // scale, width=side // scale)
    draw = torch.Generator().manual_seed(7)
    latents = torch.randn((1, channels, canvas.height, canvas.width), generator=draw)
    # The left half is bright, the right half dark: tiles with statistics of their own differ in color.
    latents[..., : canvas.width // 2] += 1.5
    source = latents if case["decodes"] else autoencoder_input(latents, side)
    own = tiles_of(source, canvas, scale, case["decodes"], group)
    if case["how"] == "layers":
        del latents, source
    gc.collect()
    # What earlier cases have freed goes back to the system, so that the peak is this case's alone.
    ctypes.CDLL(None).malloc_trim(0)
    loaded, started = start_peak(), time.perf_counter()
    with torch.inference_mode():
        if case["how"] == "layers":
            found = in_layers(autoencoder, own, canvas, scale, case, group, device)
        else:
            found = autoencoder.decode(source) if case["decodes"] else autoencoder.encode(source)
    seconds, above = time.perf_counter() - started, peak() - loaded
    peaks = [int(each) for each in group.all_gather_bytes(str(above).encode())]
    if group.rank == 0:
        torch.save(found, Path(case["out"]))
    digests = group.all_gather_bytes(hashlib.sha256(found.numpy().tobytes()).digest())
    assert len(set(digests)) == 1, "ranks differ"
    return {"seconds": seconds, "above_model": max(peaks), "sha256": digests[0].hex()}


def autoencoder_input(latents: Tensor, side: int) -> Tensor:
    """Pixels that vary at every scale, and are brighter at the left."""
    large = torch.nn.functional.interpolate(latents[:, :3], (side, side), mode="bicubic")
    fine = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(8))
    return (large * 0.2 + 0.3 + fine * 0.2).clamp(0.0, 1.0)


def tiles_of(source: Tensor, canvas: Topology, scale: int, decodes: bool, group: Group) -> dict[int, Tensor]:
    """This rank's tiles of the input."""
    grid = even_grid(canvas, tile_side(scale), group.world_size)
    size = 1 if decodes else scale
    cut = {}
    for index in grid.owned_by(group.rank):
        tile = grid.tiles[index]
        rows = slice(tile.y * size, (tile.y + tile.height) * size)
        cut[index] = source[..., rows, tile.x * size : (tile.x + tile.width) * size].clone()
    return cut


def in_layers(
    autoencoder: Any,
    own: dict[int, Tensor],
    canvas: Topology,
    scale: int,
    case: dict[str, Any],
    group: Group,
    device: torch.device,
) -> Tensor:
    """The result as a whole, though a render never holds it: it is compared."""
    grid = even_grid(canvas, tile_side(scale), group.world_size)
    with TileStore(device, case["budget"]) as store:
        run = TilePass(grid=grid, group=group, store=store, dtype=autoencoder.dtype)
        channels = next(iter(own.values())).shape[1]
        entered = run.make(own.__getitem__, channels, 1 if case["decodes"] else scale, torch.float32)
        made = autoencoder.decode_tiles(entered) if case["decodes"] else autoencoder.encode_tiles(entered)
        found: Tensor = made.gather(canvas.whole)
    return found
