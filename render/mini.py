"""The whole idea in one file and one process: many tiles, one picture.

What the engine does on many ranks, without ranks: read this first, then `render.denoise.stage_loop`.

1. The picture is composed at the model's native size, in a single tile.
2. It is enlarged, covered with noise again, and cut into overlapping tiles of the native size.
3. At each step every tile is denoised by itself, attends to the others (CrossSpatialAttention), and all are
   fused with smooth weights. Then the sampler takes one step on the whole.
4. The result is decoded.
"""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from render.guidance.cross_spatial_attention import CrossSpatialAttention
from render.models import Adapter, NoiseSchedule, WindowPlace, load_adapter, read_model_info, resolve_model
from render.sampling.samplers import to_denoised

Corner = tuple[int, int]
"""(y, x) of a tile on the canvas, in latents."""


class MiniParallelDiffusion:
    """Tiled diffusion for learners.

    >>> picture = MiniParallelDiffusion("builtin", num_tiles=4).generate("a red vase", steps=2)
    >>> picture.size
    (224, 224)
    """

    def __init__(self, base_model: str | Adapter = "builtin", num_tiles: int = 4, sync: float = 0.3) -> None:
        """`num_tiles` is a square number: 4, 9, 16 ...; `sync` is the strength of attention between them."""
        self.rows = math.isqrt(num_tiles)
        if num_tiles < 1 or self.rows**2 != num_tiles:
            raise ValueError(f"num_tiles {num_tiles} is not a square number; use 4, 9 or 16")
        if isinstance(base_model, str):
            folder = resolve_model(base_model)
            base_model = load_adapter(folder, torch.device("cpu"), "float32", read_model_info(folder))
        self.model = base_model
        self.attention = CrossSpatialAttention(base_model.info.latent_channels, strength=sync)
        self.tile = base_model.info.native_size // base_model.info.scale_factor
        self.overlap = self.tile // 4

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        *,
        steps: int = 20,
        guidance_scale: float | None = None,
        strength: float = 0.3,
        seed: int = 0,
    ) -> Image.Image:
        """A picture of `num_tiles` tiles; its side is `rows * 3/4 + 1/4` native sizes.

        `guidance_scale` is the model's own unless given.
        """
        guidance = self.model.info.guidance_scale if guidance_scale is None else guidance_scale
        schedule = self.model.schedule("euler", steps)
        text = self.model.encode_prompt(prompt, "", guided=True)
        draw = torch.Generator().manual_seed(seed)

        def denoise(latents: Tensor, first_step: int) -> Tensor:
            noise = torch.randn(latents.shape, generator=draw)
            level = schedule.level(first_step)
            x = latents * level.alpha + noise * level.sigma
            for step in range(first_step, steps):
                x = self._step(x, step, schedule, text, guidance)
            return x

        native = torch.zeros((self.model.info.latent_channels, self.tile, self.tile))
        composed = denoise(native, 0)
        if self.rows == 1:
            return self._picture(composed)
        side = self.rows * (self.tile - self.overlap) + self.overlap
        enlarged = self._enlarge(composed, side)
        return self._picture(denoise(enlarged, steps - max(1, round(steps * strength))))

    def _step(self, x: Tensor, step: int, schedule: NoiseSchedule, text: object, guidance: float) -> Tensor:
        """One Euler step on the whole canvas [C, H, W]; the tiles only predict."""
        level, lower = schedule.level(step), schedule.level(step + 1)
        corners = self._corners(x)
        tiles = torch.stack([self._cut(x, corner) for corner in corners])
        scaled = tiles * level.input_scale
        places = [self._place(x, corner) for corner in corners]
        without, with_prompt = (
            self.model.predict(
                scaled, schedule.timesteps[step], text, places, [turn] * len(corners), guidance
            )
            for turn in (0, 1)
        )
        prediction = without + guidance * (with_prompt - without)
        denoised = to_denoised(prediction, tiles, level, self.model.prediction_type)
        # Tiles attend to each other while the image is still noise; details are each tile's own.
        denoised = self.attention.sync(denoised, self.attention.strength * level.noise_share)
        fused = self._fuse(denoised, corners, x)
        noise = (x - fused * level.alpha) / level.sigma
        return fused * lower.alpha + noise * lower.sigma

    def _fuse(self, tiles: Tensor, corners: list[Corner], like: Tensor) -> Tensor:
        """The weighted mean of all tiles at every latent; weights fall off smoothly to a tile's edge."""
        ramp = torch.minimum(torch.arange(self.tile) + 0.5, torch.arange(self.tile).flip(0) + 0.5)
        profile = torch.sin(math.pi / 2 * (ramp / self.overlap).clamp(max=1)) ** 2
        weight = profile[:, None] * profile[None, :]
        total, weights = torch.zeros_like(like), torch.zeros(like.shape[1:])
        for tile, (y, x) in zip(tiles, corners, strict=True):
            total[:, y : y + self.tile, x : x + self.tile] += tile * weight
            weights[y : y + self.tile, x : x + self.tile] += weight
        return total / weights

    def _corners(self, x: Tensor) -> list[Corner]:
        side = x.shape[-1]
        starts = range(0, side - self.tile + 1, self.tile - self.overlap)
        return [(y, x) for y in starts for x in starts]

    def _cut(self, x: Tensor, corner: Corner) -> Tensor:
        return x[:, corner[0] : corner[0] + self.tile, corner[1] : corner[1] + self.tile]

    def _place(self, x: Tensor, corner: Corner) -> WindowPlace:
        """Where a tile lies in the picture, in pixels: models like SDXL are told."""
        pixel = self.model.info.scale_factor
        picture, own = x.shape[-1] * pixel, self.tile * pixel
        return WindowPlace(
            image_height=picture,
            image_width=picture,
            pixel_y=corner[0] * pixel,
            pixel_x=corner[1] * pixel,
            height=own,
            width=own,
        )

    def _enlarge(self, latents: Tensor, side: int) -> Tensor:
        """Through pixels, since latents cannot be stretched: [C, h, w] -> [C, side, side]."""
        pixels = self.model.decode(latents[None])
        size = (side * self.model.info.scale_factor,) * 2
        return self.model.encode(functional.interpolate(pixels, size, mode="bicubic").clamp(0, 1))[0]

    def _picture(self, latents: Tensor) -> Image.Image:
        pixels = (self.model.decode(latents[None])[0] * 255).round().byte()
        return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
