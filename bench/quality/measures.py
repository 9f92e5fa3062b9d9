"""What is measured of a picture's pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from render.output.pixels import Pixels

_LUMA = np.array([0.2126, 0.7152, 0.0722])


def small(pixels: Pixels, side: int) -> Pixels:
    """The whole picture by areas, [side, side, 3]: each of its pixels is the mean of a square."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))


def band_energies(pixels: Pixels, native: int) -> list[float]:
    """Energy of the grey picture per octave above what `native` pixels a side can show, the lowest first.

    In squared grey levels per pixel. The picture is windowed (Hann), so that its sides, which do not meet,
    are no edges; frequencies are cycles per picture side.
    """
    grey = pixels.astype(np.float64) @ _LUMA
    grey -= grey.mean()
    side = len(grey)
    hann = np.hanning(side + 2)[1:-1]
    window = hann[:, None] * hann[None, :]
    power = np.abs(np.fft.rfft2(grey * window)) ** 2 / ((window**2).sum() * side * side)
    # rfft2 holds each frequency but the outermost columns' once for two.
    power[:, 1:-1] *= 2
    y, x = np.fft.fftfreq(side, 1 / side), np.arange(power.shape[1])
    radius = np.hypot(y[:, None], x[None, :])
    lows = [native / 2 * 2**octave for octave in range(max(1, int(np.log2(side / native))))]
    return [float(power[(radius >= low) & (radius < (2 * low))].sum()) for low in lows]


def shift_between(means: NDArray[np.float64]) -> float:
    """[stages, 3] mean colours -> the largest step of a channel from one stage to the next, grey levels."""
    return float(np.abs(np.diff(means, axis=0)).max()) if len(means) > 1 else 0.0
