"""`AutoencoderKLQwenImage21`: that of Qwen-Image with four channels and shortcuts past its resampling."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from render.models.autoencoders.qwen_image import QwenImage, resnet
from render.models.autoencoders.tile_layers import valid
from render.models.autoencoders.tiles import Patch, Tiles


class QwenImage21(QwenImage):
    """Its pixels have an alpha channel: opaque when encoded, dropped when decoded."""

    def _from_pixels(self, pixels: Tensor) -> Tensor:
        return functional.pad(super()._from_pixels(pixels), (0, 0, 0, 0, 0, 1), value=1.0)

    def _tiles_from_pixels(self, pixels: Tiles) -> Tiles:
        return pixels.map(lambda patch, index: self._from_pixels(patch.values), channels=4, dtype=self.dtype)

    def _up(self, block: Any, tiles: Tiles) -> Tiles:
        if block.avg_shortcut is None:
            return super()._up(block, tiles)
        source = tiles
        for number, each in enumerate(block.resnets):
            tiles = resnet(each, tiles, keep=not number)
        conv, shortcut = block.upsampler.resample[1], block.avg_shortcut

        def run(patch: Patch, index: int) -> Tensor:
            doubled = functional.interpolate(patch.values, scale_factor=2.0, mode="nearest")
            return valid(conv, patch.padded(patch.center(doubled))) + _doubled(shortcut, source.take(index))

        return tiles.map(run, channels=conv.out_channels, reach=1, scale=tiles.scale * 2)

    def _down(self, block: Any, tiles: Tiles) -> Tiles:
        source = tiles
        for number, each in enumerate(block.resnets):
            tiles = resnet(each, tiles, keep=not number)
        shortcut = block.avg_shortcut
        if block.downsampler is None:
            return tiles.map(
                lambda patch, index: patch.values + _halved(shortcut, source.take(index)),
                channels=tiles.channels,
            )
        conv = block.downsampler.resample[1]

        def run(patch: Patch, index: int) -> Tensor:
            top, left, bottom, right = patch.margins
            values = functional.pad(patch.values[..., top:, left:], (0, 1 - right, 0, 1 - bottom))
            return valid(conv, values, 2) + _halved(shortcut, source.take(index))

        return tiles.map(run, channels=conv.out_channels, reach=1, scale=tiles.scale // 2)


def _doubled(shortcut: Any, values: Tensor) -> Tensor:
    """`QwenImage21DupUp3D` of the first frame: of the frames that it makes of one, the last is kept."""
    repeated = values.repeat_interleave(shortcut.repeats, dim=1)
    last = repeated.unflatten(1, (shortcut.out_channels, shortcut.factor_t, 4))[:, :, -1]
    return functional.pixel_shuffle(last.flatten(1, 2), 2)


def _halved(shortcut: Any, values: Tensor) -> Tensor:
    """`QwenImage21AvgDown3D` of the first frame: the frames before it are zeros."""
    folded = functional.pixel_unshuffle(values, shortcut.factor_s)
    frames = folded.unflatten(1, (values.shape[1], 1, -1))
    frames = functional.pad(frames, (0, 0, 0, 0, 0, 0, shortcut.factor_t - 1, 0))
    return frames.flatten(1, 3).unflatten(1, (shortcut.out_channels, shortcut.group_size)).mean(dim=2)
