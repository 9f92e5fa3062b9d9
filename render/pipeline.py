"""The Python face of the engine: one image on many ranks, in one call.

    from render import ParallelizedDiffusionPipeline

    pipeline = ParallelizedDiffusionPipeline("builtin", num_modules=2)
    image = pipeline.generate_image("a red vase on a wooden table", resolution=(1024, 1024), seed=7)
    image.pil().save("vase.png")

The ranks are started for each image and end with it. For queues of images use the farm (`chorale up`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from render.errors import BadInput, GroupFailed
from render.events import OnEvent, ignore_event
from render.launch.hardware import processors
from render.launch.rank_group import RankGroup
from render.launch.request import Request
from render.model_info import ModelInfo
from render.models.model_paths import ModelPaths, find_model_paths, model_info
from render.output.encode import ENDINGS
from render.output.export import export_image
from render.output.manifest import KEY, parse_manifest
from render.plan.decode_layout import tile_key
from render.plan.plan import make_plan
from render.spec import Spec

if TYPE_CHECKING:
    from PIL import Image

LARGEST_PIL = 2**28
"""Pixels that `RenderedImage.pil` brings into memory at once; a larger picture is exported."""


@dataclass(frozen=True, kw_only=True)
class RenderedImage:
    """A finished image: its folder holds the tile pyramid, the manifest and a preview."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def root(self) -> str:
        """Digest over all tiles: two images with the same root are the same, bit for bit."""
        return str(self.manifest["root"])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.manifest["width"], self.manifest["height"]

    def pil(self) -> Image.Image:
        """The picture at full size in memory; raises `BadInput` above `LARGEST_PIL` pixels."""
        from PIL import Image

        width, height = self.size
        if width * height > LARGEST_PIL:
            raise BadInput("size", f"{width}x{height}", "is too large for memory; use export()")
        picture = Image.new("RGB", (width, height))
        side, level = self.manifest["tile_size"], len(self.manifest["levels"]) - 1
        ending = ENDINGS[self.manifest["format"]]
        for y in range(0, height, side):
            for x in range(0, width, side):
                with Image.open(self.folder / tile_key(level, x // side, y // side, ending)) as tile:
                    picture.paste(tile, (x, y))
        return picture

    def export(self, target: str | Path, **options: Any) -> Path:
        """Write it as one .png, .tif, .jpg or .webp, in bounded memory; see `export_image`."""
        return export_image(self.folder, self.manifest, Path(target), **options)


class ParallelizedDiffusionPipeline:
    """Renders images with `num_modules` ranks on this machine, each on its own region of the canvas."""

    def __init__(
        self,
        model: str = "builtin",
        *,
        num_modules: int | None = None,
        tile_size: int = 512,
        device: str = "auto",
    ) -> None:
        """Opens nothing yet. `model` is `builtin`, a local folder or a hub id; `num_modules` is the number
        of ranks, by default one per GPU or CPU core; `tile_size` the side of a pyramid tile in pixels.
        """
        if num_modules is not None and not 1 <= num_modules <= 1024:
            raise BadInput("num_modules", num_modules, "is not from 1 to 1024")
        self.model, self.num_modules, self.tile_size, self.device = model, num_modules, tile_size, device

    def generate_image(
        self,
        prompt: str,
        resolution: tuple[int, int] = (4096, 4096),
        *,
        out: str | Path | None = None,
        on_event: OnEvent = ignore_event,
        **options: Any,
    ) -> RenderedImage:
        """Render one image of (width, height) pixels; `options` are other fields of the spec, as `seed`.

        It goes into the folder `out`, by default `out/DIGEST`. One that is finished there is returned as it
        is. `on_event` is called for stages, steps and tiles.
        Raises `BadInput` for a value that cannot be rendered, `RenderFailed` when the render breaks off.
        """
        values = {"prompt": prompt, "model": self.model, "tile_size": self.tile_size} | options
        spec = Spec.from_mapping(values | dict(zip(("width", "height"), resolution, strict=True)))
        folders = find_model_paths(spec.model, spec.refiner)
        info = model_info(folders)
        digest = spec.digest(info.digest)
        folder = Path("out") / digest[:16] if out is None else Path(out)
        done = _finished(folder, digest)
        if done is None:
            ranks = min(self.num_modules or processors(), make_plan(spec, info, 1).useful_ranks)
            _render(spec, folders, info, folder, ranks, self.device, on_event)
            done = _manifest(folder)
        return RenderedImage(folder=folder, manifest=done)


def _finished(folder: Path, digest: str) -> dict[str, Any] | None:
    """The manifest if this very image is there; raises `BadInput` when the folder holds another one."""
    if not (folder / KEY).exists():
        return None
    manifest = _manifest(folder)
    if manifest.get("digest") != digest:
        raise BadInput("out", str(folder), "holds another spec's image; name another folder")
    return manifest


def _manifest(folder: Path) -> dict[str, Any]:
    return parse_manifest((folder / KEY).read_bytes(), str(folder))


def _render(
    spec: Spec,
    folders: ModelPaths,
    info: ModelInfo,
    folder: Path,
    ranks: int,
    device: str,
    on_event: OnEvent,
) -> None:
    request = Request(
        spec=spec.to_dict(), folders=folders, info=info, device=device, out=str(folder.absolute())
    )
    group = RankGroup(ranks)
    try:
        group.render(request, on_event)
    except GroupFailed as exc:
        if exc.bad_input is not None:
            raise exc.bad_input from exc
        raise
    finally:
        group.close()
