"""Thumbnails of finished images in the size of a contact sheet: WebP, made once and stored with the image."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from infra.errors import StoreError, StoreMissing
from infra.store.base import Store
from jobs.image_store import published_image
from jobs.review.quality_gate import find_flaws
from render.errors import BadInput

THUMBNAIL = "thumbnail.webp"
"""Key beside the image's `preview.webp`."""
SIDE = 320
"""Longest side in pixels: a sheet shows 160, on screens with two pixels for each."""
_QUALITY = 72
_THREADS = 8
_log = logging.getLogger(__name__)


def thumbnail(image: Store) -> bytes:
    """The thumbnail of a finished image; made from its preview and stored unless that was done before.

    Raises `StoreError`: `StoreMissing` for an image without a preview.
    """
    with suppress(StoreMissing):
        return image.get(THUMBNAIL)
    data = _encoded(_shrunk(image.get("preview.webp")))
    try:
        image.put(THUMBNAIL, data, "image/webp")
    except StoreError as exc:
        # A board that may only read shows it all the same.
        _log.warning("a thumbnail was not stored: %s", exc)
    return data


def as_jpeg(data: bytes) -> bytes:
    """A thumbnail as every chat and mail program shows it."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def check_image(image: Store) -> list[dict[str, str]] | None:
    """The flaws of a finished image, and its thumbnail made on the way; None while its store is away."""
    try:
        manifest = published_image(image)
        pixels = _pixels(thumbnail(image))
    except (StoreMissing, BadInput, UnidentifiedImageError) as exc:
        return [{"check": "files", "text": f"its files are missing or damaged ({exc})"}]
    except StoreError as exc:
        _log.warning("the quality of an image was not checked: %s", exc)
        return None
    return find_flaws(manifest, pixels)


def check_images(images: Iterable[tuple[str, Store]]) -> dict[str, list[dict[str, str]]]:
    """By name: the flaws of those that can be read."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda each: (each[0], check_image(each[1])), images)
        return {name: flaws for name, flaws in found if flaws is not None}


def _shrunk(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as preview:
        preview.load()
        small = preview.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return small


def _encoded(small: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Without metadata: what is published are files that `chorale export` writes.
    small.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return buffer.getvalue()


def _pixels(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
