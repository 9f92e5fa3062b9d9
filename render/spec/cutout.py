"""A mask for a photograph without one: a network finds the product, matting finds its edge.

The networks are rembg's (the extra `cutout`): they look for the most prominent thing in a picture, at 320 or
1024 pixels a side. Closed-form matting (Levin et al. 2008, by pymatting) decides the pixels along its edge.
The mask is an ordinary PNG in the user's cache, so it can be looked at and corrected; a spec names it as any
mask, by its bytes. A mask of one's own is better.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from render.errors import BadInput, first_line
from render.spec.image_pixels import opaque, read_upright, resized, vips
from render.spec.init_image import InitImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)
CUTOUT = "cutout"
"""In place of a mask's path: make one. `cutout:NETWORK` names the network."""
NETWORKS = (
    "u2netp",
    "u2net",
    "silueta",
    "isnet-general-use",
    "birefnet-general",
    "birefnet-general-lite",
)
_VERSION = 1
"""Grows when masks come out otherwise, so that an old one is not taken from the cache."""
_WORK_SIDE = 768
"""Pixels of the longer side at which the edge is found: matting solves an equation for each."""
_BAND = 0.01
"""Half the width of the undecided band along the edge, as a share of the longer side."""
_SURELY, _SURELY_NOT = 240, 10
"""Levels of the network's mask that are decided, but for the band beside them."""
_ROUND_OFF = 0.02
"""Shares of a pixel below it are none, and above 1 minus it whole: only whole pixels are kept to the byte."""
_LEAST_SHARE = 0.002


def is_cutout(mask: object) -> bool:
    """Whether the value of a spec's `mask` asks for a cut-out."""
    return isinstance(mask, str) and (mask == CUTOUT or mask.startswith(f"{CUTOUT}:"))


def cutout_mask(mask: str, init: InitImage) -> Path:
    """The file of the mask that `cutout` or `cutout:NETWORK` stands for; it is made unless it is there.

    Raises `BadInput` where rembg or the network is missing, and where no product is found.
    """
    network = mask.partition(":")[2] or NETWORKS[0]
    if network not in NETWORKS:
        raise BadInput("mask", mask, f"names no network; use {CUTOUT}, or {CUTOUT}: and {_listed()}")
    if init.width * init.height == 1:
        raise BadInput("mask", mask, "finds nothing in an image of one pixel; give another one")
    identity = f"{init.digest}/{network}/{_VERSION}"
    path = _cache() / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.png"
    if not path.exists():
        weight = find_product(_pixels(init), network)
        if float(weight.mean()) < _LEAST_SHARE:
            raise BadInput("mask", mask, f"finds no product in {init.path}; give a mask of your own")
        _write(path, weight, init)
    logger.warning("mask: cut out by %s, see %s; a mask of your own is better", network, path)
    return path


def find_product(pixels: NDArray[np.uint8], network: str) -> NDArray[np.float64]:
    """[H, W] shares of each pixel that are product, in [0, 1], of an image [H, W, 3]. Raises `BadInput`."""
    import numpy as np
    from PIL import Image
    from scipy import ndimage

    session = _session(network)
    from pymatting import estimate_alpha_cf

    coarse = np.asarray(session.predict(Image.fromarray(pixels))[0])
    reach = max(1, round(_BAND * max(coarse.shape)))
    around = np.ones((2 * reach + 1, 2 * reach + 1), dtype=bool)
    inside = ndimage.binary_erosion(coarse > _SURELY, around, border_value=1)
    outside = ndimage.binary_erosion(coarse < _SURELY_NOT, around, border_value=1)
    if not inside.any() or not outside.any():
        # Nothing is decided on one of the sides, so there is no edge to refine.
        return coarse / 255.0
    trimap = np.where(inside, 1.0, np.where(outside, 0.0, 0.5))
    alpha: NDArray[np.float64] = estimate_alpha_cf(pixels / 255.0, trimap)
    return np.clip((alpha - _ROUND_OFF) / (1.0 - 2.0 * _ROUND_OFF), 0.0, 1.0)


def _pixels(init: InitImage) -> NDArray[np.uint8]:
    import numpy as np

    scale = min(1.0, _WORK_SIDE / max(init.width, init.height))
    width, height = (max(1, round(side * scale)) for side in (init.width, init.height))
    image = resized(opaque(read_upright(init.path, init.digest, "init")), width, height)
    return np.frombuffer(image.write_to_memory(), np.uint8).reshape(height, width, 3)


def _write(path: Path, weight: NDArray[np.float64], init: InitImage) -> None:
    """The mask at the photograph's size, white where to paint anew; written whole or not at all."""
    import numpy as np

    gray = (255.0 - weight * 255.0).round().astype(np.uint8)
    height, width = gray.shape
    small = vips().Image.new_from_memory(gray.tobytes(), width, height, 1, "uchar")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{uuid.uuid4().hex}.png")
    try:
        resized(small, init.width, init.height).write_to_file(str(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "chorale" / "cutouts"


@lru_cache(maxsize=2)
def _session(network: str) -> Any:
    """rembg's session of a network, on the CPU: a mask should not depend on what else the machine has."""
    try:
        import rembg
    except ImportError as exc:
        fix = "needs rembg, which is not installed; use pip install 'chorale[cutout]', or give a mask"
        raise BadInput("mask", CUTOUT, fix) from exc
    try:
        return rembg.new_session(network, providers=["CPUExecutionProvider"])
    except Exception as exc:
        # requests, pooch, onnxruntime and OS errors: whatever it was, the network is not there.
        reason = first_line(exc)
        fix = f"has no {network}.onnx and cannot download it ({reason}); put it into $U2NET_HOME"
        raise BadInput("mask", f"{CUTOUT}:{network}", fix) from exc


def _listed() -> str:
    return f"{', '.join(NETWORKS[:-1])} or {NETWORKS[-1]}"
