"""A pyramid as one file, streamed with libvips in bounded memory. Torch-free."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from render.errors import BadInput, RenderFailed, first_line
from render.output.encode import P3_TO_SRGB, in_primaries, profile, published_parameters, xmp
from render.output.manifest import Manifest
from render.spec import AUTO_PROFILE, DISPLAY_P3, KEEP_ALPHA, TRAINED

LIMITS = {
    ".png": 2**31 - 1,
    ".tif": 2**31 - 1,
    ".tiff": 2**31 - 1,
    ".jpg": 65_500,
    ".jpeg": 65_500,
    ".webp": 16_383,
}
"""File endings and the longest side in pixels that each can hold."""

Part = tuple[int, int, int, int]
"""(x, y, width, height) in an image, in pixels."""


def export_targets(manifest: Manifest, target: Path, force: bool) -> dict[Path, Part]:
    """The files to write and the part of the image that each shows.

    That is the whole image, or one file for each tile of its tile set where the target's name has `{tile}`.
    Raises `BadInput` unless all of them can be written.
    """
    targets: dict[Path, Part] = {target: (0, 0, manifest.width, manifest.height)}
    if "{tile}" in target.name:
        if not manifest.tile_set:
            raise BadInput("target", str(target), "has {tile}, but the image has no tile set; leave it out")
        targets = {
            target.with_name(target.name.replace("{tile}", name)): part
            for name, part in manifest.tile_set.items()
        }
    for each, part in targets.items():
        _check_target(each, part, force)
    return targets


def export_image(
    folder: Path,
    manifest: Manifest,
    target: Path,
    *,
    part: Part | None = None,
    quality: int = 90,
    publish_prompt: bool = False,
    force: bool = False,
    on_progress: Callable[[int], None] = lambda percent: None,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Write a published image at full resolution, or a part of it, as one file (.png .tif .jpg .webp).

    A .tif is a pyramidal BigTIFF. PNG and TIFF files have the bits and the transparency of the tiles; other
    files have 8 bits, and a .jpg is on white. The file carries the parameters of its generation, the prompts
    only with `publish_prompt`. The target is checked before any work. `finish` is called with the written
    file before it gets its name, and may change it.
    Raises `BadInput` for a target that cannot be written, `RenderFailed` when writing it fails.
    """
    part = part or (0, 0, manifest.width, manifest.height)
    _check_target(target, part, force)
    import pyvips

    image = _for_ending(joined_image(folder, manifest, part), target.suffix.lower())
    parameters = published_parameters(manifest.spec, prompt=publish_prompt)
    packet = xmp(parameters, manifest.spec.get("source_type", TRAINED))
    image.set_type(pyvips.GValue.blob_type, "xmp-data", packet)
    image.set_type(
        pyvips.GValue.blob_type, "icc-profile-data", profile(manifest.spec.get("icc", AUTO_PROFILE))
    )
    image.set_progress(True)
    image.signal_connect("eval", lambda _, progress: on_progress(int(progress.percent)))
    unfinished = target.with_name(f".part-{uuid.uuid4().hex}{target.suffix.lower()}")
    try:
        image.write_to_file(str(unfinished), **_options(target.suffix.lower(), quality))
        if finish is not None:
            finish(unfinished)
        os.replace(unfinished, target)
    except (pyvips.Error, OSError) as exc:
        reason = first_line(exc, None)
        raise RenderFailed(
            f"{target}: the export failed ({reason}); check the disk and run chorale verify"
        ) from exc
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _check_target(target: Path, part: Part, force: bool) -> None:
    limit = LIMITS.get(target.suffix.lower())
    if limit is None:
        raise BadInput("target", str(target), f"has an unknown ending; use one of {', '.join(LIMITS)}")
    longest = max(part[2:])
    if longest > limit:
        raise BadInput(
            "target", str(target), f"cannot hold {longest} px (its limit is {limit}); use .tif or .png"
        )
    if not target.parent.is_dir():
        raise BadInput("target", str(target), "is in a folder that does not exist; create it first")
    if target.exists() and not force:
        raise BadInput("target", str(target), "exists; use --force to replace it")


def joined_image(folder: Path, manifest: Manifest, part: Part) -> Any:
    """A part of a published image at full resolution as a `pyvips.Image` that reads its tiles on demand.

    Raises `BadInput` for a folder without all tiles.
    """
    import pyvips

    width, height = manifest.levels[-1]
    if part[0] + part[2] > width or part[1] + part[3] > height:
        raise BadInput("folder", str(folder), "has a damaged manifest.json; render the image again")
    side = manifest.tile_size
    tiles = []
    for key in manifest.full_level_keys():
        if not (folder / key).is_file():
            raise BadInput("folder", str(folder), f"lacks the tile {key}; run chorale verify")
        tile = pyvips.Image.new_from_file(str(folder / key))
        # A WebP file that is opaque everywhere has no transparency.
        transparent = manifest.spec.get("alpha") == KEEP_ALPHA and not tile.hasalpha()
        tiles.append(tile.addalpha() if transparent else tile)
    joined = pyvips.Image.arrayjoin(tiles, across=-(-width // side), hspacing=side, vspacing=side)
    space = "rgb16" if joined.format == "ushort" else "srgb"
    return joined.crop(0, 0, width, height).copy(interpretation=space).crop(*part)


def in_srgb8(image: Any, manifest: Manifest) -> Any:
    """What `joined_image` returns, in 8 bits and in sRGB."""
    if manifest.spec.get("icc") == DISPLAY_P3:
        colors = in_primaries(image.extract_band(0, n=3), P3_TO_SRGB)
        image = colors.bandjoin(image[3]) if image.hasalpha() else colors
    return _narrowed(image)


def _narrowed(image: Any) -> Any:
    if image.format != "ushort":
        return image
    return ((image + 128) / 257).floor().cast("uchar").copy(interpretation="srgb")


def _for_ending(image: Any, ending: str) -> Any:
    """The image in the bits, and with the transparency, that a file can hold."""
    if ending not in (".png", ".tif", ".tiff"):
        image = _narrowed(image)
    return image.flatten(background=255) if ending in (".jpg", ".jpeg") and image.hasalpha() else image


def _options(ending: str, quality: int) -> dict[str, Any]:
    if ending in (".tif", ".tiff"):
        return {"tile": True, "pyramid": True, "bigtiff": True, "compression": "deflate", "tile_width": 512,
                "tile_height": 512}  # fmt: skip
    if ending == ".png":
        return {"compression": 6}
    return {"Q": quality}
