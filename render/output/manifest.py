"""The manifest: the last file of an image. An image exists when its manifest does. Torch-free.

`Manifest` is the one definition of the file. Reading checks every type and limit, so that a damaged or
foreign file is one clear error and never a surprise further on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from render.errors import BadInput, NoImage, RenderFailed
from render.model_info import ModelInfo
from render.numerics import NUMERICS
from render.output.encode import ENDINGS
from render.output.pyramid_report import PyramidReport
from render.output.seams import SeamScore, seam_score
from render.output.tile_entry import TileEntry
from render.plan.decode_layout import tile_key
from render.sink import Sink
from render.spec import Spec

if TYPE_CHECKING:
    from render.distributed import Group

KEY = "manifest.json"
SCHEMA = 1
"""Version of the file's layout. It grows when a field changes its meaning; new fields leave it as it is."""
_FLATTEST = 2
"""An image whose gray levels span no more than this is a failed render."""
_LONGEST_SIDE = 1 << 20
_MOST_LEVELS = 21

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_TileKey = Annotated[
    str, StringConstraints(pattern=r"^image_files/[0-9]{1,2}/[0-9]{1,6}_[0-9]{1,6}\.(png|webp|jpg|tif)$")
]
_FileName = Annotated[str, StringConstraints(pattern=r"^[^./\\\x00][^/\\\x00]*$", max_length=255)]
_Side = Annotated[int, Field(ge=1, le=_LONGEST_SIDE)]
_Offset = Annotated[int, Field(ge=0, le=_LONGEST_SIDE)]
_Level = Annotated[int, Field(ge=0, le=255)]
_Seconds = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    """Frozen; types are not converted; fields that this version does not know are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class ManifestModel(_Part):
    """The model that rendered the image."""

    family: str = ""
    digest: str = ""
    """Of its weights; `MODEL+REFINER` with a refiner."""


class ManifestNumerics(_Part):
    """What decides the last bits of an image beside the spec and the library versions."""

    dtype: str = ""
    threads_per_rank: int | None = None
    """1 on a CPU, None on a GPU."""
    engine: int | None = None
    """`render.numerics.NUMERICS`; None in manifests that were written before it existed."""
    attention_window: int | None = None
    """Side of the window that the decoder's attention saw, in pixels; None where it saw the whole image."""


class ManifestKept(_Part):
    """Pixels of the init image that came back to the byte; each rank has checked those of its own tiles."""

    pixels: Annotated[int, Field(ge=0)]
    own_scale: bool
    """Whether they are the file's own pixels; else those of the file scaled to its place."""


class Manifest(_Part):
    """Everything that is known of a finished image.

    Files of schema 1 that were written by earlier versions may lack the fields that have a default here.
    """

    schema_version: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)] = SCHEMA
    digest: str
    """The spec's identity: equal digests mean equal images."""
    root: _Digest
    """The image's identity: SHA-256 over the digests of all tiles (see `root_of`)."""
    spec: dict[str, Any] = Field(default_factory=dict)
    """The spec's values."""
    model: ManifestModel = ManifestModel()
    width: _Side
    height: _Side
    """Pixels."""
    tile_size: _Side
    """Side of a tile in pixels."""
    levels: Annotated[tuple[tuple[_Side, _Side], ...], Field(min_length=1, max_length=_MOST_LEVELS)]
    """(width, height) of each zoom level in pixels, from a single pixel up to the full resolution."""
    format: Annotated[str, StringConstraints(pattern="^(png|webp|jpeg|tiff)$")]
    """Of the tiles."""
    tile_set: dict[_FileName, tuple[_Offset, _Offset, _Side, _Side]] = Field(default_factory=dict)
    """Per tile of a tile set: (x, y, width, height) in pixels."""
    tiles: dict[_TileKey, TileEntry]
    """Key -> digest and size of every file of the pyramid."""
    seams: SeamScore = SeamScore(ratio=1.0, worst=1.0, offset=0.0, borders=0)
    kept: ManifestKept | None = None
    """None where nothing was to be kept."""
    dropped: dict[str, str] = Field(default_factory=dict)
    """By field: the end of a prompt that the text encoder did not read."""
    range: tuple[_Level, _Level] = (0, 255)
    """The darkest and the brightest value of the image."""
    device: str = ""
    numerics: ManifestNumerics = ManifestNumerics()
    ranks: Annotated[int, Field(ge=1)] = 1
    """Ranks of the group that finished the image."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Package -> version."""
    timings: dict[str, _Seconds] = Field(default_factory=dict)
    """Seconds by phase, of rank 0."""
    created: str = ""
    """UTC, ISO 8601."""

    @model_validator(mode="after")
    def _full_level_has_tiles(self) -> Self:
        width, height = self.levels[-1]
        cols, rows = -(-width // self.tile_size), -(-height // self.tile_size)
        # Compared first: the sides are anybody's numbers.
        if cols * rows > len(self.tiles) or not all(key in self.tiles for key in self.full_level_keys()):
            raise ValueError("tiles of the full resolution are missing")
        return self

    @property
    def full_level(self) -> int:
        """Number of the full-resolution level."""
        return len(self.levels) - 1

    def full_level_keys(self) -> list[str]:
        """The keys of the tiles of the full resolution, row by row."""
        width, height = self.levels[-1]
        cols, rows = -(-width // self.tile_size), -(-height // self.tile_size)
        ending = ENDINGS[self.format]
        return [tile_key(self.full_level, col, row, ending) for row in range(rows) for col in range(cols)]

    def to_json(self) -> bytes:
        """The file."""
        document = self.model_dump(mode="json", by_alias=True)
        return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode()


def root_of(tiles: Mapping[str, TileEntry]) -> str:
    """The image's identity: SHA-256 over the sorted lines `key sha256` of all tiles."""
    lines = "".join(f"{key} {tiles[key].sha256}\n" for key in sorted(tiles))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_image(pyramid: PyramidReport) -> None:
    """Raise `NoImage` for an image that must not be published, `RenderFailed` for one that is not whole."""
    if pyramid.brightest - pyramid.darkest <= _FLATTEST:
        raise NoImage(
            f"the image is flat (all its values lie between {pyramid.darkest} and {pyramid.brightest}); "
            "nothing was published; try another seed, more steps or --dtype float32"
        )
    if len(pyramid.tiles) != pyramid.layout.tile_count:
        raise RenderFailed(
            f"{len(pyramid.tiles)} of {pyramid.layout.tile_count} tiles were written; nothing was published"
        )


def build_manifest(
    spec: Spec,
    info: ModelInfo,
    pyramid: PyramidReport,
    *,
    device: str,
    ranks: int,
    timings: Mapping[str, float],
    dropped: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest of a finished image; `device` is torch's type of it, `dropped` the ends of prompts that
    the model did not read."""
    layout, set_layout, source = pyramid.layout, spec.tile_set_layout, spec.kept
    return Manifest(
        digest=spec.digest(info.digest),
        root=root_of(pyramid.tiles),
        spec=spec.to_dict(),
        model=ManifestModel(family=info.family, digest=info.digest),
        width=layout.width,
        height=layout.height,
        tile_size=layout.tile_size,
        levels=tuple(layout.size_at(level) for level in range(layout.top_level + 1)),
        format=spec.format,
        tile_set={} if set_layout is None else set_layout.parts(spec.width, spec.height),
        tiles=pyramid.tiles,
        seams=seam_score(pyramid.columns, pyramid.rows),
        kept=None if source is None else ManifestKept(pixels=pyramid.kept_pixels, own_scale=source.own_scale),
        dropped=dict(dropped or {}),
        range=(pyramid.darkest, pyramid.brightest),
        device=device,
        numerics=ManifestNumerics(
            dtype=spec.dtype,
            threads_per_rank=1 if device == "cpu" else None,
            engine=NUMERICS,
            attention_window=layout.attention_window,
        ),
        ranks=ranks,
        versions=_installed(("chorale", "torch", "diffusers", "transformers", "pillow")),
        timings={name: round(seconds, 3) for name, seconds in timings.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def parse_manifest(data: bytes | None, where: str) -> Manifest:
    """The manifest of the image at `where`.

    Raises `BadInput` when there is none (`data` is None), when it cannot be read, and when a newer version
    has written it.
    """
    if data is None:
        raise BadInput("image", where, f"has no {KEY}; give the folder of a finished image")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise BadInput("image", where, f"has a {KEY} that is not JSON; render it again") from exc
    schema = document.get("schema", SCHEMA) if isinstance(document, dict) else SCHEMA
    if isinstance(schema, int) and schema > SCHEMA:
        raise BadInput("image", where, f"has a {KEY} of schema {str(schema)[:20]}; use a newer chorale")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as exc:
        raise BadInput("image", where, f"has a damaged {KEY} ({_reason(exc)}); render it again") from exc


def read_published(sink: Sink, digest: str, group: Group) -> Manifest | None:
    """The manifest of the image if it is in the sink already. All ranks call it; rank 0 reads."""
    found = b""
    if group.rank == 0 and sink.size(KEY) is not None:
        found = sink.get(KEY)
    data = group.all_gather_bytes(found)[0]
    with suppress(BadInput):
        manifest = parse_manifest(data, "sink") if data else None
        if manifest is not None and manifest.digest == digest:
            return manifest
    return None


def write_manifest(manifest: Manifest, sink: Sink) -> None:
    """Store the manifest; harmless when the same image is published already.

    Raises `RenderFailed` when another image is.
    """
    if not sink.put_if_absent(KEY, manifest.to_json(), "application/json"):
        # Another attempt at the same image: its timings differ, but its pixels must be the same.
        try:
            published = json.loads(sink.get(KEY)).get("root")
        except (ValueError, AttributeError, RecursionError):
            published = None
        if published != manifest.root:
            raise RenderFailed(
                f"another image (root {str(published)[:16]}) has been published in its place already"
            )


def _reason(exc: ValidationError) -> str:
    """The first thing that is wrong, e.g. `tile_size: Input should be a valid integer`."""
    first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    text = f"{place}: {first['msg']}" if place else first["msg"]
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= 160 else printable[:157] + "..."


@cache
def _installed(packages: tuple[str, ...]) -> dict[str, str]:
    # Looked up once: reading the metadata of a package takes as long as a step of a small image.
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
