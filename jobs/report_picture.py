"""The picture of a report: its newest images, side by side in one JPEG, as every mail program shows it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Sequence

from infra.errors import StoreError, StoreMissing
from infra.store.base import Store
from render.errors import BadInput

_SIDE, _GAP, _COLUMNS = 240, 8, 4
"""Pixels of an image and between two, and images in a row."""
_QUALITY = 82
_log = logging.getLogger(__name__)


def thumbnails(images: Store, folders: Sequence[str]) -> Iterator[bytes]:
    """The thumbnails of finished images, as WebP; a report goes without one rather than not at all."""
    # Not at module level: most reports have no picture, and its libraries take long to import.
    from PIL import UnidentifiedImageError

    from jobs.review.thumbnails import thumbnail

    for folder in folders:
        try:
            yield thumbnail(images.within(folder))
        except (StoreMissing, BadInput, UnidentifiedImageError):
            continue
        except StoreError as exc:
            _log.warning("a report goes without its images: %s", exc)
            return


def make_picture(images: Iterable[bytes]) -> bytes | None:
    """One picture of several images, each cut to a square; None where there is none, or none can be read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    cells = []
    for data in images:
        try:
            with Image.open(io.BytesIO(data)) as image:
                cells.append(ImageOps.fit(image.convert("RGB"), (_SIDE, _SIDE)))
        except (UnidentifiedImageError, OSError):
            continue
    if not cells:
        return None
    step, rows = _SIDE + _GAP, -(-len(cells) // _COLUMNS)
    size = min(len(cells), _COLUMNS) * step - _GAP, rows * step - _GAP
    sheet = Image.new("RGB", size, "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % _COLUMNS * step, number // _COLUMNS * step))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
