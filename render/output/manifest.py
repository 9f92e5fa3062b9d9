"""The manifest: written last, and an image exists when it does. Torch-free to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from render.errors import BadInput, RenderFailed
from render.model_info import ModelInfo
from render.output.seams import seam_score
from render.sink import Sink
from render.spec import Spec

if TYPE_CHECKING:
    from render.output.pyramid import PyramidReport

KEY = "manifest.json"
SCHEMA = 1
_FLATTEST = 2
"""A picture whose grey levels span no more than this is a failed render, not a picture."""


def root_of(tiles: Mapping[str, Mapping[str, Any]]) -> str:
    """The picture's identity: SHA-256 over the sorted lines `key sha256` of all tiles."""
    lines = "".join(f"{key} {tiles[key]['sha256']}\n" for key in sorted(tiles))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_picture(pyramid: PyramidReport) -> None:
    """Raise `RenderFailed` for a picture that must not be published."""
    if pyramid.brightest - pyramid.darkest <= _FLATTEST:
        raise RenderFailed(
            f"the picture is flat (all its values lie between {pyramid.darkest} and {pyramid.brightest}); "
            "nothing was published; try another seed, more steps or --dtype float32"
        )
    if len(pyramid.tiles) != pyramid.cut.tile_count:
        raise RenderFailed(
            f"{len(pyramid.tiles)} of {pyramid.cut.tile_count} tiles were written; nothing was published"
        )


def build_manifest(
    spec: Spec,
    info: ModelInfo,
    pyramid: PyramidReport,
    *,
    device: str,
    ranks: int,
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that is known of a finished image, as JSON types."""
    cut = pyramid.cut
    return {
        "schema": SCHEMA,
        "digest": spec.digest(info.digest),
        "root": root_of(pyramid.tiles),
        "spec": spec.to_dict(),
        "model": {"family": info.family, "digest": info.digest},
        "width": cut.width,
        "height": cut.height,
        "tile_size": cut.tile,
        "levels": [list(cut.size_at(level)) for level in range(cut.top_level + 1)],
        "format": spec.format,
        "tile_set": {}
        if spec.tile_set_layout is None
        else spec.tile_set_layout.parts(spec.width, spec.height),
        "tiles": pyramid.tiles,
        "seams": asdict(seam_score(pyramid.columns, pyramid.rows)),
        "range": [pyramid.darkest, pyramid.brightest],
        "device": device,
        "numerics": {"dtype": spec.dtype, "threads_per_rank": 1 if device == "cpu" else None},
        "ranks": ranks,
        "versions": _versions(("chorale", "torch", "diffusers", "transformers", "pillow")),
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parse_manifest(data: bytes | None, where: str) -> dict[str, Any]:
    """The manifest of the image at `where`; raises `BadInput` when there is none or it cannot be read."""
    if data is None:
        raise BadInput("image", where, f"has no {KEY}; give what chorale render wrote, once it is finished")
    try:
        manifest = json.loads(data)
    except ValueError as exc:
        raise BadInput("image", where, f"has a {KEY} that cannot be read; render again") from exc
    if not isinstance(manifest, dict) or "tiles" not in manifest or "root" not in manifest:
        raise BadInput("image", where, f"has a {KEY} that is not an image's; render again")
    return manifest


def write_manifest(manifest: Mapping[str, Any], sink: Sink) -> None:
    """Put the manifest in place; harmless when the same picture is there already.

    Raises `RenderFailed` when another one is.
    """
    data = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode()
    if not sink.put_if_absent(KEY, data, "application/json"):
        # Another attempt at the same image: it took other seconds, but must have come to the same pixels.
        there = json.loads(sink.get(KEY))
        if there.get("root") != manifest["root"]:
            raise RenderFailed(
                f"another picture (root {str(there.get('root'))[:16]}) has been published in its place"
            )


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
