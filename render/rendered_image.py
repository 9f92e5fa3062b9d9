"""What the Python pipeline returns: finished images, and their tile pyramids on disk."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from render.errors import BadInput
from render.output.encode import ENDINGS
from render.output.export import export_image
from render.output.manifest import Manifest
from render.plan.decode_layout import tile_key
from render.spec import KEEP_ALPHA

if TYPE_CHECKING:
    from PIL import Image

LARGEST_PIL = 2**28
"""Pixels that `RenderedImage.pil` brings into memory at once; a larger image is exported."""
LARGEST_REPR = 1024
"""Longest side in pixels of what a notebook shows."""


@dataclass(frozen=True, kw_only=True)
class RenderedImage:
    """A finished image: its folder holds the tile pyramid and the manifest."""

    folder: Path
    manifest: Manifest

    @property
    def root(self) -> str:
        """Digest over all tiles: two images with the same root are equal bit for bit."""
        return self.manifest.root

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.manifest.width, self.manifest.height

    def pil(self) -> Image.Image:
        """The image at full size in memory, in 8 bits; raises `BadInput` above `LARGEST_PIL` pixels."""
        check_fits_memory(*self.size)
        return self._level(self.manifest.full_level)

    def thumbnail(self, longest_side: int = LARGEST_REPR) -> Image.Image:
        """The largest level of the pyramid whose sides are at most `longest_side` pixels."""
        fitting = [n for n, sides in enumerate(self.manifest.levels) if max(sides) <= longest_side]
        return self._level(fitting[-1] if fitting else 0)

    def export(self, target: str | Path, **options: Any) -> Path:
        """Write it as one .png, .tif, .jpg or .webp, in bounded memory; see `export_image`."""
        return export_image(self.folder, self.manifest, Path(target), **options)

    def _level(self, level: int) -> Image.Image:
        from PIL import Image

        width, height = self.manifest.levels[level]
        mode = "RGBA" if self.manifest.spec.get("alpha") == KEEP_ALPHA else "RGB"
        image = Image.new(mode, (width, height))
        side, ending = self.manifest.tile_size, ENDINGS[self.manifest.format]
        for y in range(0, height, side):
            for x in range(0, width, side):
                with Image.open(self.folder / tile_key(level, x // side, y // side, ending)) as tile:
                    image.paste(tile, (x, y))
        return image

    def _repr_png_(self) -> bytes:
        """What a notebook shows: a level of at most `LARGEST_REPR` pixels a side."""
        data = io.BytesIO()
        self.thumbnail().save(data, "PNG")
        return data.getvalue()


@dataclass(frozen=True, kw_only=True)
class PipelineOutput:
    """What calling the pipeline returns, as diffusers' `ImagePipelineOutput`."""

    images: Any
    """A list of PIL images; with `output_type="np"` a float32 array [N, H, W, 3] from 0 to 1; with "latent" a
    float32 tensor [N, C, h, w], as diffusers' VAE takes it after division by its scaling factor."""
    manifests: tuple[Manifest, ...] = ()
    """Of each image; empty for latents."""


def check_fits_memory(width: int, height: int) -> None:
    """Raise `BadInput` for a size above `LARGEST_PIL`."""
    if width * height > LARGEST_PIL:
        fix = "is too large to hold in memory; use generate_image() and export()"
        raise BadInput("size", f"{width}x{height}", fix)
