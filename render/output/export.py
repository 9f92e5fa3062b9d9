"""One file from a pyramid, streamed with libvips in bounded memory. Torch-free."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from render.errors import BadInput, RenderFailed
from render.output.encode import ENDINGS, srgb_profile, xmp
from render.plan.decode_layout import tile_key

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
"""(x, y, width, height) of a picture, in pixels"""


def export_targets(manifest: dict[str, Any], target: Path, force: bool) -> dict[Path, Part]:
    """The files to write and what each shows: the picture, or one for each tile of its set where the
    target's name holds `{tile}`. Raises `BadInput` unless all of them could be written.
    """
    whole = 0, 0, manifest["width"], manifest["height"]
    targets = {target: whole}
    if "{tile}" in target.name:
        tiles = manifest.get("tile_set")
        if not tiles:
            raise BadInput("target", str(target), "asks for tiles of an image without any; leave {tile} out")
        targets = {
            target.with_name(target.name.replace("{tile}", name)): tuple(part) for name, part in tiles.items()
        }
    for each, part in targets.items():
        _check_target(each, part, force)
    return targets


def export_image(
    folder: Path,
    manifest: dict[str, Any],
    target: Path,
    *,
    part: Part | None = None,
    quality: int = 90,
    force: bool = False,
    on_progress: Callable[[int], None] = lambda per_cent: None,
) -> Path:
    """Write a published image at full resolution, or a part of it, as one file (.png .tif .jpg .webp).

    A .tif is a pyramidal BigTIFF. Everything that can be refused is refused before any work.
    Raises `BadInput` for the user's mistakes, `RenderFailed` when the file cannot be written.
    """
    part = part or (0, 0, manifest["width"], manifest["height"])
    _check_target(target, part, force)
    import pyvips

    picture = _joined(folder, manifest, pyvips).crop(*part)
    parameters = json.dumps(manifest["spec"], sort_keys=True, ensure_ascii=False)
    picture.set_type(pyvips.GValue.blob_type, "xmp-data", xmp(parameters))
    picture.set_type(pyvips.GValue.blob_type, "icc-profile-data", srgb_profile())
    picture.set_progress(True)
    picture.signal_connect("eval", lambda _, progress: on_progress(int(progress.percent)))
    unfinished = target.with_name(f".part-{uuid.uuid4().hex}{target.suffix.lower()}")
    try:
        picture.write_to_file(str(unfinished), **_options(target.suffix.lower(), quality))
        os.replace(unfinished, target)
    except (pyvips.Error, OSError) as exc:
        reason = str(exc).strip().splitlines()[0]
        raise RenderFailed(
            f"{target}: the export broke off ({reason}); check the disk and verify the image"
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
        raise BadInput("target", str(target), "lies in a folder that does not exist; make it first")
    if target.exists() and not force:
        raise BadInput("target", str(target), "exists; use --force to replace it")


def _joined(folder: Path, manifest: dict[str, Any], pyvips: Any) -> Any:
    level = len(manifest["levels"]) - 1
    width, height = manifest["levels"][level]
    side, ending = manifest["tile_size"], ENDINGS[manifest["format"]]
    across, down = -(-width // side), -(-height // side)
    tiles = []
    for row in range(down):
        for col in range(across):
            path = folder / tile_key(level, col, row, ending)
            if not path.is_file():
                raise BadInput(
                    "folder", str(folder), f"lacks the tile {path.name} of level {level}; run chorale verify"
                )
            tiles.append(pyvips.Image.new_from_file(str(path)))
    joined = pyvips.Image.arrayjoin(tiles, across=across, hspacing=side, vspacing=side)
    return joined.crop(0, 0, width, height).copy(interpretation="srgb")


def _options(ending: str, quality: int) -> dict[str, Any]:
    if ending in (".tif", ".tiff"):
        return {"tile": True, "pyramid": True, "bigtiff": True, "compression": "deflate", "tile_width": 512,
                "tile_height": 512}  # fmt: skip
    if ending == ".png":
        return {"compression": 6}
    return {"Q": quality}
